"""From text to token ids and back into tensors."""

from __future__ import annotations

from collections.abc import Sequence

import jinja2
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from brim.errors import DataError, ModelError
from brim.models.cutting import cut_fields
from brim.types import Example


class Encoder:
    """Turns examples into prompt ids and texts into completion ids, as a kind of model needs it.

    Encoder-decoders get what their tokenizer makes of a text, special tokens included. Decoder-only
    models continue a prompt, so an EOS that the tokenizer appends is taken off, and completions are
    the plain ids that follow. Prompt and completion are tokenized apart and joined as ids, so the
    boundary never moves.

    Args:
        tokenizer: the model's tokenizer.
        end_ids: the tokens that end a completion; the first is appended to targets.
        decoder_start_id: what opens a completion of an encoder-decoder; None for decoder-only.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        end_ids: Sequence[int],
        decoder_start_id: int | None,
    ) -> None:
        self.tokenizer, self.end_ids = tokenizer, tuple(end_ids)
        self.is_encoder_decoder = decoder_start_id is not None
        self._not_text = {*end_ids, decoder_start_id, tokenizer.pad_token_id}
        own = (tokenizer.bos_token_id, *end_ids)
        self._start_id = next(i for i in own if i is not None)
        self._appends_end = any(i in self.end_ids for i in tokenizer("a").input_ids[-1:])

    def prompts(
        self, examples: Sequence[Example], max_tokens: int | None
    ) -> tuple[list[list[int]], int]:
        """Prompt ids and how many prompts were cut.

        A long prompt with an `Example.field` loses the end of this field, and a chat the end of its
        longest message; all else stays (`cut_fields`). Where there is neither, or the rest alone is
        too long, an encoder's prompt keeps its beginning and the final EOS, and that of a
        decoder-only model its end, which the completion continues, and the BOS. An empty prompt
        becomes BOS, or EOS where there is no BOS.

        Raises:
            DataError: the chat template refuses an example's messages.
            ModelError: an example has messages and the tokenizer no chat template.
        """
        ids = self._encode(examples)
        if max_tokens is None:
            return ids, 0
        long = [row for row, tokens in enumerate(ids) if len(tokens) > max_tokens]
        shorter = cut_fields(
            [examples[row] for row in long],
            [len(ids[row]) for row in long],
            max_tokens,
            tokenizer=self.tokenizer,
            encode=self._encode,
        )
        for row, tokens in zip(long, shorter, strict=True):
            ids[row] = tokens or self._cut(ids[row], max_tokens)
        return ids, len(long)

    def completions(self, examples: Sequence[Example], texts: Sequence[str]) -> list[list[int]]:
        """Ids of one text an example, each with one EOS at its end.

        Raises:
            DataError: a text spells out an end-of-sequence token before its end.
        """
        if not texts:  # which tokenizers refuse
            return []
        if self.is_encoder_decoder:
            all_ids = self.tokenizer(text_target=list(texts), verbose=False).input_ids
        else:
            all_ids = self._tokenize(list(texts), add_special_tokens=False)
        for ids, example in zip(all_ids, examples, strict=True):
            while ids and ids[-1] in self.end_ids:
                ids.pop()
            if any(i in self.end_ids for i in ids):
                raise DataError(
                    f"the target of example {example.id!r} spells out an end-of-sequence token "
                    f"before its end; remove {self.tokenizer.eos_token!r} from it"
                )
            ids.append(self.end_ids[0])
        return all_ids  # type: ignore[no-any-return]

    def texts(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The ids of each row as text.

        Only what frames a text is left out: end, padding and decoder start. A special token that a
        model was taught to write, such as a separator, is part of what it wrote.
        """
        ids = [[i for i in row if i not in self._not_text] for row in rows]
        return self.tokenizer.batch_decode(  # type: ignore[no-any-return]
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def _encode(self, examples: Sequence[Example]) -> list[list[int]]:
        """The ids of whole prompts."""
        plain = [row for row, example in enumerate(examples) if not example.messages]
        chats = [row for row, example in enumerate(examples) if example.messages]
        ids: list[list[int]] = [[] for _ in examples]
        for row, tokens in zip(
            plain, self._tokenize([examples[i].prompt for i in plain]), strict=True
        ):
            strip = self._appends_end and not self.is_encoder_decoder
            ids[row] = tokens[:-1] if strip else tokens
        rendered = [self._render(examples[i]) for i in chats]
        # A template writes all special tokens itself; only an encoder's final EOS is missing.
        for row, tokens in zip(
            chats, self._tokenize(rendered, add_special_tokens=self.is_encoder_decoder), strict=True
        ):
            ids[row] = tokens
        return [tokens or [self._start_id] for tokens in ids]

    def _tokenize(self, texts: list[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        if not texts:
            return []
        encoded = self.tokenizer(texts, add_special_tokens=add_special_tokens, verbose=False)
        return encoded.input_ids  # type: ignore[no-any-return]

    def _render(self, example: Example) -> str:
        if self.tokenizer.chat_template is None:
            raise ModelError(
                f"example {example.id!r} is a chat but the tokenizer has no chat template; "
                "use an instruction-tuned model, or a prompt column instead of messages"
            )
        try:
            return self.tokenizer.apply_chat_template(  # type: ignore[no-any-return]
                [dict(message) for message in example.messages],
                tokenize=False,
                add_generation_prompt=True,
            )
        except jinja2.TemplateError as error:
            raise DataError(
                f"the chat template refuses the messages of example {example.id!r}: {error}"
            ) from error

    def _cut(self, ids: list[int], max_tokens: int) -> list[int]:
        if self.is_encoder_decoder:
            kept_end = ids[-1:] if ids[-1] in self.end_ids else []
            return ids[: max_tokens - len(kept_end)] + kept_end
        kept_start = ids[:1] if ids[0] == self.tokenizer.bos_token_id and max_tokens > 1 else []
        return kept_start + ids[len(ids) - max_tokens + len(kept_start) :]


def pad(rows: Sequence[Sequence[int]], pad_id: int, side: str) -> tuple[Tensor, Tensor]:
    """Ids (B, S) int64 and mask (B, S) bool of rows of different lengths."""
    width = max(map(len, rows))
    lengths = torch.tensor([len(row) for row in rows])
    if side == "left":
        padded = [[pad_id] * (width - len(row)) + list(row) for row in rows]
        mask = torch.arange(width) >= (width - lengths)[:, None]
    else:
        padded = [list(row) + [pad_id] * (width - len(row)) for row in rows]
        mask = torch.arange(width) < lengths[:, None]
    return torch.tensor(padded), mask
