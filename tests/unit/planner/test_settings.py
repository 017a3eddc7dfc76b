"""The planner's settings, and what becomes of them."""

from pathlib import Path

import pytest

from libs.contracts.placement import Policy
from libs.kernel.errors import ConfigError
from libs.policy.model_profile import json_of_profile
from libs.policy.paper_profiles import GPT_20B
from libs.runtime.config import read_config
from services.planner.config import PlannerConfig
from services.planner.read_profile import read_profile
from services.planner.settings import planner_options

MODEL = Path(__file__).parents[3] / "models" / "tide-tiny"


def a_config(**settings: str) -> PlannerConfig:
    fields = {"model": str(MODEL), **settings}
    environment = {f"PLANNER__{name.upper()}": value for name, value in fields.items()}
    return read_config(PlannerConfig, service="planner", environment=environment)


def test_settings_come_from_the_environment() -> None:
    config = a_config(policy="spotserve", nodes_max="8", kubernetes__namespace="serving")
    assert config.policy is Policy.SPOTSERVE
    assert config.alias_served == "tide-tiny"
    assert config.kubernetes.namespace == "serving"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"model": ""}, "model"),
        ({"policy": "best"}, "policy"),
        ({"nodes_max": "-1"}, "nodes_max"),
        ({"nodes_max": "4", "nodes_min": "5"}, "nodes_min"),
        ({"provisioner": "local"}, "nodes_max"),
        ({"provisioner": "magic"}, "provisioner"),
        ({"gain_percent_min": "100"}, "gain_percent_min"),
        ({"requests_per_s_min": "0"}, "requests_per_s_min"),
        ({"report_interval_ms": "0"}, "report_interval_ms"),
        ({"reports_missed_max": "0"}, "reports_missed_max"),
    ],
)
def test_a_wrong_setting_names_its_field(settings: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        a_config(**settings)


@pytest.mark.parametrize("policy", list(Policy))
def test_only_the_policy_of_our_own_looks_at_waiting(policy: Policy) -> None:
    profile = read_profile(MODEL, device="cpu", profile=None)
    options = planner_options(
        a_config(policy=policy.value), profile=profile, model=None, planner_id="p", process_id=1
    )
    assert options.plan.search.has_queueing is (policy is Policy.TIDESERVE)


def test_the_bytes_of_the_bundled_model_are_those_of_its_file() -> None:
    size = read_profile(MODEL, device="cuda", profile=None).size
    # One embedding for both ends: the head counts again only where stages part them.
    tied_bytes = size.weight_bytes - size.head_bytes
    assert tied_bytes == pytest.approx((MODEL / "model.safetensors").stat().st_size, rel=0.01)


def test_shards_divide_the_heads_and_the_width_of_the_mlp() -> None:
    # 12 heads would allow three shards, 448 units do not.
    profile = read_profile(MODEL, device="cpu", profile=None)
    assert sorted(profile.times_by_shards) == [1, 2, 4]


def test_a_measured_profile_is_taken_instead_of_an_assumed_one(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    file.write_text(json_of_profile(GPT_20B))
    assert read_profile(MODEL, device="cpu", profile=str(file)) == GPT_20B
    with pytest.raises(ConfigError, match=r"missing\.json"):
        read_profile(MODEL, device="cpu", profile=str(tmp_path / "missing.json"))
