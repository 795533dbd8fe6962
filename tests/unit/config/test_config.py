import hashlib
import math
import re
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, model_validator
from pydantic_core.core_schema import ErrorType

from brim.config.loading import Config, config_hash, dump_config, given_settings, load_config
from brim.config.messages import _WANTED
from brim.config.yaml import dump, parse
from brim.errors import ConfigError


class Plain(Config):
    name: Literal["plain"]
    clip: float | None = 100.0


class Blocks(Config):
    name: Literal["blocks"]
    k: int = Field(2, ge=1)
    clip: float | None = 100.0


class Optim(Config):
    lr: float = Field(1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 0


class Trainer(Config):
    steps: int | None = None
    epochs: float | None = None
    optim: Optim = Optim()

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give one of steps\nand epochs")
        return self


class Run(Config):
    objective: Annotated[Plain | Blocks, Field(discriminator="name")] = Plain(name="plain")
    trainer: Trainer = Trainer()
    optim: Optim = Optim()
    prompt: str = "{text}"
    path: Path | None = None
    mode: Literal["sampling", "greedy"] = "sampling"
    levels: tuple[int, ...] = ()
    limit: int | Literal["all"] = "all"
    shuffle: bool = True
    stages: tuple[Annotated[Plain | Blocks, Field(discriminator="name")], ...] = ()
    model: str | Optim = "tiny"


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def load(text="", *overrides, search=None):
        data = text if isinstance(text, bytes) else text.encode()
        Path("recipe.yaml").write_bytes(data)
        return load_config(Run, Path("recipe.yaml"), overrides, search=search)

    return load


def complaint(load, *args, **kwargs):
    with pytest.raises(ConfigError) as caught:
        load(*args, **kwargs)
    return str(caught.value)


# The examples of the YAML 1.2.2 specification, section 10.3.2, and PyYAML's known departures.
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("12e+03", 12000.0),
        ("-2E+05", -2e5),
        ("0.", 0.0),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("+12", 12),
        ("010", 10),
        ("0o7", 7),
        ("0x3A", 58),
        ("true", True),
        ("False", False),
        ("no", "no"),
        ("on", "on"),
        ("~", None),
        ("", None),
        ("2001-12-14", "2001-12-14"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("'1e-5'", "1e-5"),
        ("[1, 'a', {b: null}]", [1, "a", {"b": None}]),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    read = parse(text, str).data
    assert read == value
    assert type(read) is type(value)


any_text = st.text(st.characters(exclude_categories=["Cs"]))
plain_data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=8,
)


@given(plain_data)
def test_dumped_data_reads_back_equal_here_and_in_other_readers(data):
    text = dump(data)
    assert parse(text, str).data == data
    assert yaml.safe_load(text) == data


finite = st.floats(allow_nan=False, allow_infinity=False)
runs = st.builds(
    Run,
    objective=st.builds(Blocks, name=st.just("blocks"), k=st.integers(1)),
    optim=st.builds(
        Optim,
        lr=st.floats(0, exclude_min=True, allow_infinity=False),
        betas=st.tuples(finite, finite),
    ),
    prompt=any_text,
    path=st.none() | any_text.filter(lambda text: "\0" not in text).map(Path),
    levels=st.lists(st.integers()).map(tuple),
    limit=st.integers() | st.just("all"),
    model=any_text | st.builds(Optim),
)


@given(runs)
def test_a_dumped_config_loads_as_an_equal_one(tmp_path_factory, run):
    file = tmp_path_factory.getbasetemp() / "resolved.yaml"
    file.write_text(dump_config(run), encoding="utf-8")
    assert load_config(Run, file) == run
    assert config_hash(load_config(Run, file)) == config_hash(run)


def test_a_dump_lists_fields_in_declared_order():
    text = dump_config(Optim(lr=1e-5))
    assert text.splitlines()[0] == "lr: 1.0e-05"
    assert text.index("lr:") < text.index("betas:") < text.index("warmup_steps:")


@given(st.text(max_size=40) | st.text("ab:-[]{}&*!|>'\"#\n ,?1.", max_size=40))
def test_any_text_is_read_or_refused_on_one_line(text):
    message = ""
    try:
        parse(text, str)
    except ConfigError as error:
        message = str(error)
    assert "\n" not in message


# Each is named by its place and key; then what was wrong, what is wanted, or what was meant.
@pytest.mark.parametrize(
    ("text", "place", "hint"),
    [
        ("optim:\n  learning_rate: 1\n", "2: optim.learning_rate: ", "did you mean optim.lr?"),
        ("mode: 1\nlr: 1", "2: lr: ", "did you mean optim.lr? (and 1 more)"),
        ("optim:\n  warmup: 1", "2: optim.warmup: ", "did you mean optim.warmup_steps?"),
        ("optim: {zzz: 1}", "1: optim.zzz: ", "lr, betas, warmup_steps"),
        ("\noptim:\n  lr: -1", "3: optim.lr: -1 ", "greater than 0"),
        ("optim:\n  lr: '1'", '2: optim.lr: "1" ', "a number"),
        ("optim: 3", "1: optim: 3 ", "a mapping"),
        ("levels: 3", "1: levels: 3 ", "a list"),
        ("levels:\n- 1\n- true", "3: levels.1: true ", "a whole number"),
        ("shuffle: no", '1: shuffle: "no" ', "true or false"),
        ("path: 3", "1: path: 3 ", "text"),
        ("limit: 0.5", "1: limit: 0.5 ", "a whole number or 'all'"),
        ("mode: greddy", '1: mode: "greddy" ', "sampling, greedy; did you mean greedy?"),
        ("objective:\n  name: block", '2: objective.name: "block" ', "did you mean blocks?"),
        ("objective:\n  k: 2", "1: objective.name: missing", "plain, blocks"),
        ("objective:\n  name: plain\n  k: 2", "3: objective.k: ", "objective.name blocks"),
        ("objective:\n  name: blocks\n  k: 0", "3: objective.k: 0 ", "at least 1"),
        ("stages:\n- name: plain\n- name: blocks\n  kk: 1", "4: stages.1.kk: ", "stages.1.k?"),
        ("model:\n  lr: 0", "2: model.lr: 0 ", "greater than 0"),
        ("trainer: {steps: 1, epochs: 1}", "1: trainer: ", "give one of steps and epochs"),
        ("optim:\n  lr: 1\n  lr: 2", "3: optim.lr: ", "first at recipe.yaml:2"),
        ("mode: [1\nlr: 2", "2: ", "expected ',' or ']'"),
        ("a: 1\n\tb: 2", "2: ", "'\\t'"),
        ("prompt: \x07", "1: ", "U+0007"),
        ("prompt: !!python/name:os.system", "1: prompt: ", "python/name:os.system"),
        ("prompt: &a [*a]", "1: prompt: ", "nested"),
        (b"mode: x\nprompt: \xff", "2: ", "UTF-8"),
        ("- 1", "1: ", "`key: value`"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_its_line(load, text, place, hint):
    message = complaint(load, text)
    assert message.startswith(f"recipe.yaml:{place}")
    assert hint in message
    assert "Input should" not in message


@pytest.mark.parametrize(
    ("override", "place", "hint"),
    [
        ("optim.lrr=1", "", "did you mean optim.lr?"),
        ("optim.lr=-1", "-1 ", "greater than 0"),
        ("optim={lr: -1}", "optim.lr: -1 ", "greater than 0"),
        ("optim.lr.x=3", 'optim.lr: {"x": 3} ', "a number"),
        ("objective.name=block", '"block" ', "did you mean blocks?"),
        ("prompt=null", "null ", "text"),
        ("lr 1", "", "key.sub=value"),
        ("optim..lr=1", "", "key.sub=value"),
    ],
)
def test_a_mistake_on_the_command_line_is_named_with_the_override(load, override, place, hint):
    message = complaint(load, "optim: {lr: 1}\n", override)
    assert message.startswith(f"command line: {override}: {place}")
    assert hint in message


def test_an_override_that_is_no_text_is_shown_all_the_same(load):
    message = complaint(load, "", "path=\udcff")
    assert message.startswith("command line: path=\\udcff: ")


@pytest.mark.parametrize("kind", sorted(_WANTED))
def test_every_kind_of_mistake_has_words_of_ours(kind):
    """The names of kinds are pydantic's: one that it does not know would never be used."""
    assert kind in get_args(ErrorType)


# A few hundred bytes that stand for gigabytes: lists of lists, mappings of mappings, long text.
LAUGHS = [
    "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1},' * 9}]\n" for i in range(1, 10)),
    "a0: &a0 {x: 1}\n"
    + "".join(f"a{i}: &a{i} {{p: *a{i - 1}, q: *a{i - 1}}}\n" for i in range(1, 40)),
    f"a0: &a0 {'x' * 2_000_000}\na1: [*a0, *a0, *a0]\n",
]


@pytest.mark.parametrize("text", LAUGHS)
def test_aliases_are_not_expanded_without_bound(load, text):
    message = complaint(load, text)
    assert re.fullmatch(r"recipe.yaml:1: a\d+: too large; write less, .*aliases", message)


@pytest.mark.parametrize("text", ["[" * 5000, "{a: " * 200 + "1" + "}" * 200, "- " * 150])
def test_deep_nesting_is_refused(load, text):
    assert re.fullmatch(r"recipe.yaml:1: (\w+: )?nested too deeply", complaint(load, text))


@pytest.mark.parametrize("parent", ["", "optim:\n", "objective:\n  name: blocks\n"])
def test_many_unknown_keys_are_one_line(load, parent):
    # An algorithm that compared each of them with each other one would need hours.
    indent = "  " * bool(parent)
    text = parent + "".join(f"{indent}unknown_{i}: {i}\n" for i in range(20_000))
    assert complaint(load, text, "mode=greedy").endswith(" (and 19999 more)")


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1e999"])
@pytest.mark.parametrize("key", ["optim.lr", "objective.clip", "trainer.epochs"])
def test_numbers_are_finite(load, key, value):
    text = "objective: {name: plain}"
    assert complaint(load, text, f"{key}={value}").startswith(f"command line: {key}={value}: ")


@pytest.mark.parametrize(
    ("text", "overrides", "place"),
    [
        ("trainer:\n  steps: 1", ["mode=greedy", "trainer.epochs=2"], "recipe.yaml:1: trainer: "),
        ("\ntrainer: {steps: 1, epochs: 2}", ["optim.lr=1"], "recipe.yaml:2: trainer: "),
        ("", ["trainer={steps: 1, epochs: 2}"], "command line: trainer={steps: 1, epochs: 2}: "),
        ("trainer: {steps: 1}\nvariants: {size: {big: {trainer: {epochs: 2}}}}", ["size=big"],
         "recipe.yaml:1: trainer: "),
    ],
)  # fmt: skip
def test_a_mistake_between_settings_has_the_place_of_their_group(load, text, overrides, place):
    assert complaint(load, text, *overrides) == f"{place}give one of steps and epochs"


class Pair(Config):
    optim: Optim = Optim()
    trainer: Trainer = Trainer()

    @model_validator(mode="after")
    def _rate(self) -> Self:
        if self.optim.lr > 0.1:
            raise ValueError("optim.lr: too high; lower it")
        return self


class Pairs(Config):
    pair: Pair = Pair()
    named: dict[str, Optim] = Field({})


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("pair:\n  trainer: {}\n  optim:\n    lr: 1", "recipe.yaml:4: pair.optim.lr"),
        ("pair: {optim: {lr: 1}}", "recipe.yaml:1: pair.optim.lr"),
    ],
)
def test_a_mistake_between_settings_has_the_line_of_the_one_to_change(tmp_path, text, place):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(Pairs, path)
    assert str(caught.value) == f"{tmp_path}/{place}: too high; lower it"
    with pytest.raises(ConfigError, match="^command line: pair.optim.lr=2: too high; lower it$"):
        load_config(Pairs, path, ["pair.optim.lr=2"])


def test_a_typo_in_a_mapping_of_groups_has_a_suggestion(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("named:\n  mine: {lrr: 1}")
    message = r":2: named.mine.lrr: unknown key; did you mean named.mine.lr\?$"
    with pytest.raises(ConfigError, match=message):
        load_config(Pairs, path)


def test_a_missing_key_is_named_with_the_mapping_that_lacks_it(load, tmp_path):
    class Outer(Config):
        inner: Plain

    Path("recipe.yaml").write_text("\ninner:\n  clip: 1\n")
    with pytest.raises(ConfigError, match=r"^recipe.yaml:2: inner.name: missing; add it$"):
        load_config(Outer, Path("recipe.yaml"))
    with pytest.raises(ConfigError, match=r"^nothing.yaml: no such file or directory; "):
        load_config(Outer, Path("nothing.yaml"))


def test_overrides_are_yaml_and_later_ones_win(load):
    run = load(
        "optim: {lr: 1e-5, warmup_steps: 7}\npath: x\n",
        "optim.lr=2e-5",
        "optim.lr=3e-5",
        "levels=[1, 2]",
        "trainer.optim.warmup_steps=3",
        "path=null",
        "limit=5",
    )
    assert run.optim == Optim(lr=3e-5, warmup_steps=7)
    assert run.levels == (1, 2)
    assert run.trainer.optim.warmup_steps == 3
    assert run.path is None
    assert run.limit == 5


@pytest.mark.parametrize(
    "text",
    [
        *("{question}", "{a} {b}", "Say: {a} # now", "12", "true", "a=b", "", " x", "[1", "é"),
        *("### Instruction: {a}", "#", "&x", "&x {a}", "*x", "!x {a}", "!!null {a}", "|", "> {a}"),
        *("%x", "@a", "`a`", "--- {a}", "...", "- {a}", "? {a}", "null # {a}", "12 # {a}"),
        *('"{a}" in Dutch:', "'{a}' # cut", '"{a}": {b}', "'a' 'b'", '"a', "'", '"'),
    ],
)
def test_where_the_setting_is_text_an_override_is_taken_as_written(load, text):
    assert load("", f"prompt={text}").prompt == text


def test_quotes_around_an_override_are_yamls(load):
    assert load("", 'prompt="a\\n{b}"').prompt == "a\n{b}"
    assert load("", "prompt= 'it''s # {b}' ").prompt == "it's # {b}"
    assert load("", 'prompt="\\"{b}\\""').prompt == '"{b}"'
    assert complaint(load, "", 'prompt="\\d"').startswith('command line: prompt="\\d": ')


@pytest.mark.parametrize("text", ["# {a}", "&x", "!!null 1", "--- # 1"])
def test_what_yaml_takes_for_nothing_is_no_null(load, text):
    assert load("path: x", f"path={text}").path == Path(text)
    assert complaint(load, "", f"optim.lr={text}").startswith(f"command line: optim.lr={text}: ")


@pytest.mark.parametrize("text", ["~", "null", "Null", " NULL "])
def test_null_is_null(load, text):
    assert load("path: x", f"path={text}").path is None


VARIANTS = """
variants:
  rate: {1e-4: {optim: {lr: 1e-4}}, 1e-5: {optim: {lr: 1e-5}}}
  fast: {true: {optim: {warmup_steps: 1}}, false: {}, 1: {optim: {warmup_steps: 2}}}
  place: {null: {prompt: none}}
"""


@pytest.mark.parametrize("rate", ["1e-4", "0.0001", "1.0e-04", "'1e-4'"])
def test_a_variant_may_be_a_number(load, rate):
    assert load(VARIANTS, f"rate={rate}").optim.lr == 1e-4


def test_a_variant_may_be_a_boolean_or_null_and_come_from_python(load):
    assert load(VARIANTS, "fast=true", "place=null") == Run(
        optim=Optim(warmup_steps=1), prompt="none"
    )
    assert load(VARIANTS, "fast=1").optim.warmup_steps == 2
    given = given_settings({"rate": 1e-5, "fast": True})
    read = load_config(Run, Path("recipe.yaml"), given)
    assert (read.optim.lr, read.optim.warmup_steps) == (1e-5, 1)
    assert complaint(load, VARIANTS, "rate=1e-3").startswith(
        "command line: rate=1e-3: rate is one of 1e-4, 1e-5"
    )


def test_an_override_set_to_null_later_is_not_brought_back(load):
    assert complaint(load, "", "prompt=12", "prompt=null").startswith("command line: prompt=null: ")


def test_the_extending_file_wins_key_by_key(load):
    Path("base").mkdir()
    Path("base/one.yaml").write_text("extends: two.yaml\noptim: {lr: 1}\nlevels: [1, 2]\n")
    Path("base/two.yaml").write_text("optim: {lr: 2, warmup_steps: 2}\nprompt: two\n")
    run = load("extends: base/one.yaml\nlevels: [3]\n")
    assert run == Run(optim=Optim(lr=1.0, warmup_steps=2), levels=(3,), prompt="two")


def test_another_name_drops_the_settings_of_the_old_one(load):
    Path("base.yaml").write_text("objective: {name: blocks, k: 4, clip: 5}\n")
    extends = "extends: base.yaml\n"
    assert load(extends, "objective.clip=6").objective == Blocks(name="blocks", k=4, clip=6.0)
    assert load(extends, "objective.name=plain").objective == Plain(name="plain", clip=100.0)
    assert load(f"{extends}objective: {{name: plain}}\n").objective == Plain(name="plain")
    assert load(f"{extends}objective: {{name: blocks}}\n").objective.k == 4


def test_overrides_of_a_name_and_its_settings_mean_the_same_in_either_order(load):
    overrides = ["objective.k=8", "objective.name=blocks"]
    assert load("", *overrides) == load("", *reversed(overrides))


def test_a_key_of_a_list_that_an_override_gave_is_said_in_the_list(load):
    given = "stages=[{name: plain}, {name: blocks}]"
    assert complaint(load, "", given, "stages.clip=3") == (
        "command line: stages.clip=3: stages is a list, given before; say it in the list: "
        "stages=[{…, clip: 3}, …]"
    )
    assert load("", "stages.clip=3", given).stages == load("", given).stages  # later ones win


@pytest.mark.parametrize(
    ("item", "hint"),
    [
        ("{name: blocks, clipp: 3}", "did you mean stages.0.clip?"),
        ("{name: blocks, lr: 3}", "the keys here are name, k, clip"),
        ("{name: blocks, steps: 3}", "the keys here are name, k, clip"),
    ],
)
def test_an_item_of_a_list_has_keys_of_its_own(load, item, hint):
    assert complaint(load, f"stages: [{item}]").endswith(f"unknown key; {hint}")


def test_names_without_suffix_are_searched_for(load):
    Path("elsewhere.yaml").write_text("prompt: found\n")
    assert load("extends: cmudict/brim", search=lambda name: Path("elsewhere.yaml")).prompt == (
        "found"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: recipe.yaml", "recipe.yaml:1: extends: recipe.yaml: extends this file in turn"),
        ("\nextends: loop.yaml", "recipe.yaml:2: extends: loop.yaml:1: extends: recipe.yaml: ext"),
        ("extends: none.yaml", "recipe.yaml:1: extends: none.yaml: no such file or directory"),
        ("extends: [a]", 'recipe.yaml:1: extends: ["a"] must be the name of one file'),
        ("extends: bad.yaml", "bad.yaml:1: optim.lrr: unknown key; did you mean optim.lr?"),
        ("extends: good.yaml\noptim:\n  lr: -1", "recipe.yaml:3: optim.lr: -1 must be greater"),
        ("extends: good.yaml\nmode: greedy\noptim: {warmup_steps: 1}\nlr: 1", "recipe.yaml:4: lr"),
    ],
)
def test_mistakes_across_files_are_found_in_the_right_one(load, text, message):
    Path("loop.yaml").write_text("extends: recipe.yaml")
    Path("bad.yaml").write_text("optim: {lrr: 1}")
    Path("good.yaml").write_text("optim: {lr: 1}")
    assert complaint(load, text).startswith(message)


def test_hash_does_not_depend_on_the_order_of_keys_and_does_on_everything_else():
    value = {"b": Optim(), "a": [1, Path("x")]}
    assert config_hash(value) == config_hash(dict(reversed(value.items())))
    assert config_hash(value) != config_hash({**value, "b": Optim(lr=2.0)})
    assert config_hash(Optim()) == config_hash({"o": Optim()}["o"].model_copy())
    assert config_hash({"b": "é", "a": 1}) == (hashlib.sha256(b'{"a":1,"b":"\\u00e9"}').hexdigest())
    with pytest.raises(TypeError, match="set"):
        config_hash({"a": {1, 2}})


def test_settings_with_a_mapping_are_keys_of_a_cache():
    class Sets(Config):
        test: dict[str, str]

    one, same = Sets(test={"a": "x", "b": "y"}), Sets(test={"b": "y", "a": "x"})
    assert {one: 1}[same] == 1
    assert Sets(test={"a": "y"}) not in {one: 1}
