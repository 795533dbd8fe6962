"""A T5-type model from scratch with a Unigram tokenizer, as T5's own is: a teacher to train.

    python examples/unigram_teacher.py unigram_teacher
    brim train examples/unigram_teacher.yaml

The pieces are learned from the texts of the task synopsis. Their scores differ in the last digits
from call to call, for the library sums them in any order; brim's own tokenizers for models from
scratch, words and BPE, are the same each time.
"""

import sys

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from brim.models import build_model
from brim.tasks import Synopsis

SHAPE = {"family": "t5", "d_model": 192, "d_ff": 512, "layers": 2, "heads": 6, "dropout": 0.1}


def train_unigram(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a tokenizer whose pieces begin with `▁` where a word does."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def main(folder: str, *, max_examples: int | None = None) -> None:
    """Save the model and its tokenizer, which is of so many examples' text; by default all."""
    examples = Synopsis(max_train_examples=max_examples).load("train")
    texts = [text for example in examples for text in (example.prompt, *example.references)]
    tokenizer = train_unigram(texts, vocab_size=4000)
    build_model({**SHAPE, "feed_forward": "gated-gelu"}, tokenizer, seed=0).save(folder)


if __name__ == "__main__":
    main(sys.argv[1])
