"""Run files: everything wrong is reported at once, what is right survives a round trip."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsplit.config.check import METRICS, RANGES
from fedsplit.config.load import dumps, load, loads, validated
from fedsplit.config.run import ClientSection, ModelSection, RunFile, TrainSection
from fedsplit.errors import ConfigError, Problem

MINIMAL = '[model]\npath = "pydoc-llama"\n'


def problems(text: str) -> dict[str, Problem]:
    with pytest.raises(ConfigError) as caught:
        loads(text, "run.toml")
    assert "run.toml" in str(caught.value)
    return {problem.path: problem for problem in caught.value.problems}


def test_defaults_are_valid() -> None:
    run = loads(MINIMAL)
    assert run.model == ModelSection(path="pydoc-llama")
    assert run.train == TrainSection()
    assert run.clients == ()


def test_every_problem_is_reported_at_once() -> None:
    found = problems(
        """
        trian = 1
        [model]
        task = "clasification"
        labls = ["a"]
        [train]
        lr = 1e-3
        batch = "16"
        rank = 4
        momentum = 0.9
        [rounds]
        clients = 2
        quorum = 3
        [[clients]]
        name = "pi"
        cut = [1]
        """
    )
    assert set(found) == {
        "trian",
        "model.task",
        "model.labls",
        "model.path",
        "train.lr",
        "train.batch",
        "train.rank",
        "train.momentum",
        "rounds.quorum",
        "clients[0].cut",
    }
    assert found["trian"].fix == 'did you mean "train"?'
    assert found["model.task"].fix == 'did you mean "classification"?'
    assert found["model.path"].found == "nothing"
    assert found["train.lr"].fix == 'did you mean "learning_rate"?'
    assert found["train.batch"] == Problem("train.batch", '"16"', "a whole number", "write it without quotes")
    assert found["train.rank"].fix == "it belongs in [lora]"
    assert "a list of 2, each a whole number" in found["clients[0].cut"].expected


@pytest.mark.parametrize(
    ("text", "path", "words"),
    [
        ('task = "classification"', "model.labels", "at least 2"),
        ('task = "classification"\nlabels = ["a", "a"]', "model.labels[1]", "every class once"),
        ('labels = ["a", "b"]', "model.labels", "none for causal-lm"),
        ('head = "local"', "model.head", "causal-lm"),
        ("[policy]\nmin_front = 0", "policy.min_front", "exposes_tokens"),
        ('[[clients]]\nname = "a"\ntopology = "v"', "clients[0].topology", "shares_labels"),
        ('[[clients]]\nname = "a"\ntopology = "w"', "clients[0].topology", "exposes_tokens"),
        ('[[clients]]\nname = "a"\ncut = [3, 1]', "clients[0].cut", "0 ≤ c1 ≤ c2"),
        ('[[clients]]\nname = "a"\ncut = [-1, 1]', "clients[0].cut", "0 ≤ c1 ≤ c2"),
        ('[[clients]]\nname = "a"\ncut = [0, 2]', "clients[0].cut", "min_front"),
        ('[[clients]]\nname = "a"\ntopology = "local"\ncut = [1, 2]', "clients[0].cut", "local"),
        ('[[clients]]\nname = "a"\n[[clients]]\nname = "a"', "clients[1].name", "clients[0]"),
        ('[[clients]]\nname = "../x"', "clients[0].name", "letters"),
        ('[[clients]]\nname = "a"\nbatch = 3\n[train]\nmicro_batches = 2', "clients[0].batch", "multiple"),
        ("[train]\nbatch = 10\nmicro_batches = 3", "train.micro_batches", "divisor of train.batch = 10"),
        ("[train]\nmomentum = 0.9", "train.momentum", "adamw"),
        ("[train]\nwarmup_steps = 200", "train.warmup_steps", "100"),
        ("[rounds]\nclients = 2\nquorum = 3", "rounds.quorum", "rounds.clients = 2"),
        ("[rounds]\nclients = 4\nquorum = 3\nparticipation = 0.5", "rounds.quorum", "draws 2 of 4"),
        ('[data]\nprompt = "q"', "data.completion", "data.prompt"),
        ('[data]\ncompletion = "q"', "data.prompt", "data.completion"),
        ('[data]\ntext = "a"\nmessages = "m"', "data", "one of"),
        ('[data]\nimage = "a"', "data.image", "causal-lm"),
        ('[evaluate]\nmetric = "mse"', "evaluate.metric", "perplexity"),
        ('[evaluate]\nmetric = "accuracy"', "evaluate.metric", "perplexity"),
        ("[evaluate]\npatience = 2\nevery = 0", "evaluate.patience", "every"),
        ("[evaluate]\npatience = 2\nclients = false", "evaluate.patience", "measures"),
        ("[data]\neval_fraction = nan", "data.eval_fraction", "less than 1"),
        ('[run]\nname = "a/b"', "run.name", "letters"),
        ('[lora]\ntargets = ["q", "q"]', "lora.targets[1]", "not in the list"),
    ],
)
def test_rules_across_fields(text: str, path: str, words: str) -> None:
    found = problems(MINIMAL + text)
    assert list(found) == [path]
    assert words in str(found[path])


@pytest.mark.parametrize("path", RANGES)
def test_every_number_has_bounds(path: str) -> None:
    section, key = path.split(".")
    text = f"[{section}]\n{key} = -1\n"
    found = problems(MINIMAL + (text if section != "model" else f"{key} = -1\n"))
    assert path in found
    assert found[path].found in ("-1", "-1.0")


def test_every_number_of_the_run_file_is_covered() -> None:
    numbers = {
        f"{section.name}.{field.name}"
        for section in msgspec.structs.fields(RunFile)
        if isinstance(section.type, type) and issubclass(section.type, msgspec.Struct)
        for field in msgspec.structs.fields(section.type)
        if field.type in (int, float)
    }
    assert numbers == set(RANGES)


def test_every_task_has_metrics() -> None:
    tasks = msgspec.inspect.type_info(ModelSection)
    assert isinstance(tasks, msgspec.inspect.StructType)
    kind = next(field.type for field in tasks.fields if field.name == "task")
    assert isinstance(kind, msgspec.inspect.LiteralType)
    assert set(kind.values) == set(METRICS)


def test_a_reported_value_is_not_reported_again_by_a_rule() -> None:
    found = problems(MINIMAL + '[train]\nbatch = "x"\nmicro_batches = 3\n')
    assert set(found) == {"train.batch", "train.micro_batches"}
    # micro_batches = 3 contradicts the default of 16, which is what stands when batch is ignored.
    assert problems(MINIMAL + "[rounds]\nclients = true\n").keys() == {"rounds.clients"}


@pytest.mark.parametrize("value", ["true", "1979-05-27", "[1]", "{a = 1}", "1.5", '"x"'])
def test_no_type_slips_through(value: str) -> None:
    assert "train.steps" in problems(MINIMAL + f"[train]\nsteps = {value}\n")


@pytest.mark.parametrize(
    ("section", "path"),
    [("server", "server.bits"), ("model", "model.edge_bits"), ("wire", "wire.gradient_bits"), ("plan", "plan.bits[0]")],
)
@pytest.mark.parametrize(("given", "said"), [('"4"', '"4"'), ("8.0", "8.0"), ("true", "true"), ("5", "5")])
def test_a_choice_of_numbers_is_written_without_quotes(section: str, path: str, given: str, said: str) -> None:
    key, value = path.partition(".")[2].removesuffix("[0]"), f"[{given}]" if path.endswith("]") else given
    head = "" if section == "model" else f"[{section}]\n"
    problem = problems(f"{MINIMAL}{head}{key} = {value}\n")[path]
    assert problem.found == said
    assert problem.expected.startswith("one of ")
    assert '"' not in problem.expected
    assert problem.fix == ("write it without quotes" if given.startswith('"') else "")


def test_a_whole_number_serves_where_a_number_is_wanted() -> None:
    alpha = loads(MINIMAL + "[lora]\nalpha = 16\n").lora.alpha
    assert alpha == 16.0
    assert isinstance(alpha, float)


def test_a_section_that_is_no_table() -> None:
    assert problems("model = 3")["model"].expected == "a table"
    assert problems("")["model"].fix == "add a section [model]"


def test_method_options_keep_their_types() -> None:
    run = loads(MINIMAL + '[method.options]\nrank = 4\nmu = 0.1\nname = "x"\non = true\n')
    assert run.method.options == {"rank": 4, "mu": 0.1, "name": "x", "on": True}
    assert "method.options.bad" in problems(MINIMAL + "[method.options]\nbad = [1]\n")


def test_broken_toml_names_line_and_file() -> None:
    with pytest.raises(ConfigError, match=r"run\.toml: not valid TOML: .*line 2"):
        loads("[model]\npath = \n", "run.toml")


names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,20}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30).filter(str.strip)


@given(
    path=texts,
    labels=st.lists(texts, min_size=2, max_size=5, unique=True),
    clients=st.lists(names, unique=True, max_size=4),
    rate=st.floats(1e-8, 10),
    seed=st.integers(0, 2**63 - 1),
)
@settings(max_examples=60, deadline=None)
def test_round_trip(path: str, labels: list[str], clients: list[str], rate: float, seed: int) -> None:
    run = validated(
        {
            "model": {"path": path, "task": "classification", "labels": labels},
            "run": {"seed": seed},
            "train": {"learning_rate": rate},
            "clients": [{"name": name, "cut": [1, 1 + i]} for i, name in enumerate(clients)],
        }
    )
    assert loads(dumps(run)) == run


def test_paths_are_taken_from_the_run_files_folder(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "mine.py").write_text("")
    file = tmp_path / "run.toml"
    file.write_text(
        '[model]\npath = "tiny"\n[method]\nname = "./mine.py:best"\n'
        '[[clients]]\nname = "a"\ndata = "a.jsonl"\ndevice = "raspberry-pi-5"\n'
    )
    run = load(file)
    assert Path(run.model.path) == (tmp_path / "tiny").resolve()
    assert run.clients == (
        ClientSection(name="a", data=str((tmp_path / "a.jsonl").resolve()), device="raspberry-pi-5"),
    )
    assert run.method.name == f"{(tmp_path / 'mine.py').resolve()}:best"
    assert Path(run.run.dir) == (tmp_path / "runs" / "run").resolve()
    file.write_text('[model]\npath = "org/name"\n')
    assert load(file).model.path == "org/name"
    assert load(file).method.name == "fedavg"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda file: None, "there is no run file .* fedsplit new"),
        (lambda file: file.mkdir(), "is a folder"),
        (lambda file: file.write_bytes(b"\xff\xfe[model]"), "not UTF-8"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, make: object, words: str) -> None:
    file = tmp_path / "run.toml"
    assert callable(make)
    make(file)
    with pytest.raises(ConfigError, match=words):
        load(file)


def test_a_run_waits_for_all_its_clients_unless_told_otherwise() -> None:
    both = '[model]\npath = "pydoc-llama"\n[[clients]]\nname = "a"\n[[clients]]\nname = "b"\n'
    assert loads(both).rounds.clients == 2
    assert loads(both + "[rounds]\nclients = 1\n").rounds.clients == 1
    assert loads('[model]\npath = "pydoc-llama"\n').rounds.clients == 1
