"""Settings of the learner: what is wrong stops it, with the name and what is accepted."""

from pathlib import Path

import pytest

from tuneloop.errors import FailedPrecondition, SettingsError
from tuneloop.learner.app.resources import sample_rules
from tuneloop.learner.files import take_lock
from tuneloop.learner.ledger.events.sample_rules import SampleRules
from tuneloop.learner.main import check_reward_metric, check_settings
from tuneloop.learner.settings import LearnerSettings
from tuneloop.policies import WeightsKind
from tuneloop.settings import load

REQUIRED = {
    "model": "/models/tiny",
    "weights_uri": "/weights",
    "signing_key_file": "/keys/private.pem",
    "verify_key_file": "/keys/public.pem",
    "data_dir": "/data",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in REQUIRED.items():
        monkeypatch.setenv(f"TUNELOOP_LEARNER_{name.upper()}", value)
    return monkeypatch


def test_the_defaults_learn_from_thumbs_in_seconds(environment: pytest.MonkeyPatch) -> None:
    settings = load(LearnerSettings)
    assert (settings.batch_size, settings.batch_wait_seconds) == (16, 5.0)
    assert (settings.publish_every_steps, settings.publish_every_seconds) == (2, 60.0)
    assert settings.base_model == "tiny"
    assert settings.weight_of("kto") == settings.weight_of("ppo") == 1.0
    assert settings.trainer().kind is WeightsKind.LORA
    assert settings.trainer().optimizer.learning_rate == 4e-4


def test_values_come_from_the_environment(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("TUNELOOP_LEARNER_WEIGHTS_KIND", "full")
    environment.setenv("TUNELOOP_LEARNER_OBJECTIVE_WEIGHTS", '{"kto": 1, "ppo": 0.5}')
    environment.setenv("TUNELOOP_LEARNER_POLICY_GRADIENT", "off")
    settings = load(LearnerSettings)
    assert settings.trainer().optimizer.learning_rate == 1e-5
    assert settings.weight_of("kto") == 1.0
    assert settings.weight_of("dpo") == 0.0
    assert settings.weight_of("ppo") == 0.0
    assert settings.objective_weights["ppo"] == 0.5


def test_one_objective_learns_from_scored_rollouts(environment: pytest.MonkeyPatch) -> None:
    assert load(LearnerSettings).scored_objective == "ppo"
    environment.setenv("TUNELOOP_LEARNER_POLICY_GRADIENT", "rloo")
    environment.setenv("TUNELOOP_LEARNER_TRAINER_SETTINGS", '{"beta_grpo": 0.0, "epsilon": 0.1}')
    settings = load(LearnerSettings)
    assert settings.scored_objective == "grpo"
    assert (settings.weight_of("ppo"), settings.weight_of("grpo")) == (0.0, 1.0)
    trainer = settings.trainer()
    assert (trainer.advantage_estimator, trainer.beta_grpo, trainer.epsilon) == ("rloo", 0.0, 0.1)
    assert trainer.resume_warmup_steps == settings.resume_warmup_steps
    assert settings.reward_trainer().resume_warmup_steps == settings.resume_warmup_steps


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"PPO": "off"}, {}, ("off", 8, False)),
        ({"PPO": "auto"}, {}, ("auto", 8, False)),
        ({"PPO": "auto"}, {"POLICY_GRADIENT": "grpo"}, ("grpo", 8, False)),
        ({"PPO": "on"}, {"POLICY_GRADIENT": "rloo"}, ("rloo", 8, True)),
        ({"PPO_BATCH_SIZE": "4"}, {}, ("auto", 4, False)),
        ({"PPO_BATCH_SIZE": "4"}, {"POLICY_GRADIENT_BATCH_SIZE": "4"}, ("auto", 4, False)),
    ],
)
def test_old_names_of_policy_gradients_are_accepted_with_a_warning(
    environment: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    old: dict[str, str],
    new: dict[str, str],
    expected: tuple[str, int, bool],
) -> None:
    for name, value in (old | new).items():
        environment.setenv(f"TUNELOOP_LEARNER_{name}", value)
    settings = load(LearnerSettings)
    found = (
        settings.policy_gradient,
        settings.policy_gradient_batch_size,
        settings.uninformative_scores,
    )
    assert found == expected
    (name,) = old
    assert f"TUNELOOP_LEARNER_{name} is now TUNELOOP_LEARNER_POLICY_GRADIENT" in caplog.text


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"PPO": "off"}, {"POLICY_GRADIENT": "grpo"}),
        ({"PPO": "on"}, {"POLICY_GRADIENT": "off"}),
        ({"PPO": "on"}, {"UNINFORMATIVE_SCORES": "false"}),
        ({"PPO_BATCH_SIZE": "4"}, {"POLICY_GRADIENT_BATCH_SIZE": "8"}),
    ],
)
def test_an_old_name_that_contradicts_the_new_one_is_refused(
    environment: pytest.MonkeyPatch, old: dict[str, str], new: dict[str, str]
) -> None:
    for name, value in (old | new).items():
        environment.setenv(f"TUNELOOP_LEARNER_{name}", value)
    ((old_name, _),), ((new_name, _),) = old.items(), new.items()
    message = f"TUNELOOP_LEARNER_{old_name}=.+ contradicts TUNELOOP_LEARNER_{new_name}="
    with pytest.raises(SettingsError, match=message):
        load(LearnerSettings)


def test_a_new_policy_warms_up_within_a_kl_budget(environment: pytest.MonkeyPatch) -> None:
    trainer = load(LearnerSettings).trainer()
    assert (trainer.warmup_steps, trainer.kl_budget) == (6, 0.5)
    assert trainer.optimizer.betas == (0.5, 0.999)
    environment.setenv("TUNELOOP_LEARNER_WARMUP_STEPS", "0")
    environment.setenv("TUNELOOP_LEARNER_KL_BUDGET", "0")
    trainer = load(LearnerSettings).trainer()
    assert (trainer.warmup_steps, trainer.kl_budget) == (0, None)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('{"epsylon": 0.1}', "trainer_settings: epsylon: no setting of a trainer"),
        ('{"kl_coef": 0.1}', "trainer_settings: kl_coef: has a setting of its own"),
        ('{"epsilon": 2}', "epsilon must be"),
        ('{"epsilon": "a"}', "trainer_settings"),
    ],
)
def test_a_wrong_setting_of_the_trainer_is_named(
    environment: pytest.MonkeyPatch, value: str, message: str
) -> None:
    environment.setenv("TUNELOOP_LEARNER_TRAINER_SETTINGS", value)
    with pytest.raises(SettingsError, match=message):
        load(LearnerSettings).trainer()


def test_prompts_that_could_never_fill_a_step_are_refused(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("TUNELOOP_LEARNER_PROMPTS", "/data/prompts.jsonl")
    environment.setenv("TUNELOOP_LEARNER_POLICY_GRADIENT_BATCH_SIZE", "200")
    with pytest.raises(SettingsError, match="no step would ever be full"):
        load(LearnerSettings)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("BATCH_SIZ", "3", "did you mean TUNELOOP_LEARNER_BATCH_SIZE"),
        ("BATCH_SIZE", "0", "TUNELOOP_LEARNER_BATCH_SIZE='0'"),
        ("POLICY_GRADIENT", "maybe", "auto"),
        ("PPO", "maybe", "auto"),
        ("ALGORITHMS", '{"kto": "dpo"}', "ALGORITHMS.*'dpo' does not learn from samples of 'kto'"),
        ("OBJECTIVE_WEIGHTS", '{"reward_model": 1}', "OBJECTIVE_WEIGHTS"),
        ("WEIGHTS_KIND", "half", "lora or full"),
        ("POLICY", "a.b", "TUNELOOP_LEARNER_POLICY"),
        ("NICENESS", "-5", "0 \\(as important as serving\\) to 19"),
        ("OBJECTIVE_WEIGHTS", '{"rlhf": 1}', "OBJECTIVE_WEIGHTS"),
    ],
)
def test_a_wrong_or_unknown_setting_is_named(
    environment: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    environment.setenv(f"TUNELOOP_LEARNER_{name}", value)
    with pytest.raises(SettingsError, match=message):
        load(LearnerSettings)


def test_a_folder_without_a_model_is_refused(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment.setenv("TUNELOOP_LEARNER_MODEL", str(tmp_path))
    with pytest.raises(SettingsError, match="TUNELOOP_LEARNER_MODEL: no model in"):
        check_settings(load(LearnerSettings))


def test_two_learners_never_share_a_ledger(tmp_path: Path) -> None:
    lock = take_lock(tmp_path)
    with pytest.raises(FailedPrecondition, match="another learner works in"):
        take_lock(tmp_path, wait_seconds=0.0)
    lock.close()
    take_lock(tmp_path).close()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"POLICY_GRADIENT": "off"}, "'solved' would teach nothing, as policy gradients are off"),
        ({"OBJECTIVE_WEIGHTS": '{"kto": 1}'}, "'solved' would teach nothing"),
        ({"PROMPTS": "/prompts.jsonl"}, "answers to TUNELOOP_LEARNER_PROMPTS are scored"),
        ({"REWARD_METRIC": "is it solved?"}, "(?i)reward_metric"),
    ],
)
def test_a_metric_that_could_teach_nothing_is_refused(
    environment: pytest.MonkeyPatch, values: dict[str, str], message: str
) -> None:
    for name, value in ({"REWARD_METRIC": "solved"} | values).items():
        environment.setenv(f"TUNELOOP_LEARNER_{name}", value)
    with pytest.raises(SettingsError, match=message):
        check_reward_metric(load(LearnerSettings))


def test_a_metric_is_the_reward_of_the_algorithm_that_is_set(
    environment: pytest.MonkeyPatch,
) -> None:
    assert sample_rules(load(LearnerSettings)) == SampleRules()
    environment.setenv("TUNELOOP_LEARNER_REWARD_METRIC", "solved")
    environment.setenv("TUNELOOP_LEARNER_POLICY_GRADIENT", "rloo")
    settings = load(LearnerSettings)
    check_reward_metric(settings)
    rules = sample_rules(settings)
    assert (rules.scored_objective, rules.reward_metric) == ("grpo", "solved")
    assert not rules.ratings_reward, "one reward, one scale"


SECRET = "whsec_" + "A" * 32


@pytest.mark.parametrize(
    ("urls", "secret", "problem"),
    [
        ('["http://ops.example.com/x"]', SECRET, "http://ops.example.com must be https://"),
        ('["ftp://127.0.0.1/x"]', SECRET, "must be https://"),
        ('["https:///x"]', SECRET, "must be https://"),
        ('["https://ops.example.com"]', "", "set both or neither"),
        ("[]", SECRET, "set both or neither"),
        ('["https://ops.example.com"]', "whsec_short", "24 to 64 bytes"),
        ('["https://ops.example.com"]', f"{SECRET} {'A' * 32}", "24 to 64 bytes"),
    ],
)
def test_webhooks_that_cannot_be_signed_or_would_be_read_are_refused(
    environment: pytest.MonkeyPatch, urls: str, secret: str, problem: str
) -> None:
    environment.setenv("TUNELOOP_LEARNER_WEBHOOK_URLS", urls)
    if secret:
        environment.setenv("TUNELOOP_LEARNER_WEBHOOK_SECRET", secret)
    with pytest.raises(SettingsError, match=problem) as refused:
        load(LearnerSettings)
    assert not secret or secret not in refused.value.message
    assert "/x" not in refused.value.message


def test_the_secret_of_webhooks_may_be_in_a_file_and_be_replaced(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\nwhsec_{'B' * 32}\n")
    environment.setenv("TUNELOOP_LEARNER_WEBHOOK_URLS", '["http://localhost:1/x"]')
    environment.setenv("TUNELOOP_LEARNER_WEBHOOK_SECRET_FILE", str(file))
    assert load(LearnerSettings).webhook_keys() == [bytes(24), b"\x04\x10A" * 8]
    file.write_text("")
    with pytest.raises(SettingsError, match="is empty"):
        load(LearnerSettings)
