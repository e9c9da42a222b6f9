"""The run configuration of Flower's apps: what a SuperLink has sent cannot read the machine's environment."""

import copy
import pickle
import shlex
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from fedsvd.compat import flower
from fedsvd.config.compose import compose
from fedsvd.config.run_config import from_run_config, own_run_config
from fedsvd.errors import ConfigError

SECRET = "hf_secret"


@pytest.fixture(autouse=True)
def variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSVD_TEST_TOKEN", SECRET)
    monkeypatch.setenv("FEDSVD_TEST_DEVICE", "cpu")


def test_run_config() -> None:
    assert from_run_config({"overrides": "seed=5"}).seed == 5
    assert from_run_config({"overrides": ""}) == compose()
    for wrong in ({}, {"overrides": 3}):
        with pytest.raises(ConfigError, match="declare overrides"):
            from_run_config(wrong)


@pytest.mark.parametrize(
    "override",
    [
        "device=${oc.env:FEDSVD_TEST_TOKEN}",
        "device=${oc.env:FEDSVD_TEST_TOKEN,cpu}",
        "device=${oc.env:FEDSVD_TEST_ABSENT,cpu}",
        "device='${oc.decode:${oc.env:FEDSVD_TEST_TOKEN}}'",
        "run_dir=${oc.env:FEDSVD_TEST_TOKEN}",
        "+added=${oc.env:FEDSVD_TEST_TOKEN}",
    ],
)
def test_a_sent_configuration_reads_no_variable(override: str) -> None:
    with pytest.raises(ConfigError, match="a run on real nodes cannot read environment variables") as caught:
        from_run_config({"overrides": shlex.join([override])})
    assert SECRET not in str(caught.value)


def test_the_users_own_configuration_reads_variables_also_beside_a_sent_one() -> None:
    own = own_run_config(["device=${oc.env:FEDSVD_TEST_DEVICE}"])
    sent = {"overrides": str.__str__(own["overrides"])}

    def compose_both(number: int) -> str:
        with pytest.raises(ConfigError, match="cannot read environment variables"):
            from_run_config(sent)
        return from_run_config(own).device

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(compose_both, range(8))) == ["cpu"] * 8


def test_only_this_machine_writes_overrides_of_its_own() -> None:
    own = own_run_config(["device=${oc.env:FEDSVD_TEST_DEVICE}"])
    # To a copy of an app, and to a process of the simulation engine.
    for passed_on in (copy.deepcopy(own), pickle.loads(pickle.dumps(own))):
        assert from_run_config(passed_on).device == "cpu"
    sent = flower.context_from_bytes(flower.context_to_bytes(Context(1, 2, {}, RecordDict(), own))).run_config
    with pytest.raises(ConfigError, match="cannot read environment variables"):
        from_run_config(sent)


@pytest.mark.parametrize("exists", [True, False])
def test_a_sent_configuration_names_no_directory(exists: bool, tmp_path: Path) -> None:
    folder = tmp_path if exists else tmp_path / "absent"
    with pytest.raises(ConfigError, match="is not possible in the configuration of a run on real nodes"):
        from_run_config({"overrides": f"hydra.searchpath=[{folder}]"})
