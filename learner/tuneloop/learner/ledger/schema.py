"""Tables of the ledger: SQLAlchemy Core, for SQLite and Postgres.

Each table's key makes an event that comes twice have one effect. Times are seconds since
the epoch (UTC), so that both databases order and compare them alike. Every change here comes with a
revision in `migrations/versions` that migrates an older ledger; a newer ledger is refused.
"""

from sqlalchemy import (
    Boolean,
    Column,
    Float,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    true,
)

from tuneloop.learner.ledger.rows import PlainText

metadata = MetaData()

facts = Table(
    "facts",
    metadata,
    Column("name", String, primary_key=True),
    Column("value", Text, nullable=False),
    comment="What the ledger belongs to (schema, policy, base model) and whether it is paused.",
)

rollouts = Table(
    "rollouts",
    metadata,
    Column("completion_id", String, primary_key=True),
    Column("group_id", String, nullable=False),
    Column("policy", String, nullable=False),
    Column("tenant", String, nullable=False),
    Column("user_hash", String, nullable=False, index=True),
    Column("messages", Text, nullable=False, comment="JSON: [[role, content], …]"),
    Column("prompt_text", PlainText, nullable=False),
    Column("completion_text", PlainText, nullable=False),
    Column("prompt_tokens", LargeBinary, nullable=False, comment="int32, little-endian"),
    Column("completion_tokens", LargeBinary, nullable=False, comment="int32, little-endian"),
    Column("generation_logprobs", LargeBinary, nullable=False, comment="float32, little-endian"),
    Column("spans", Text, nullable=False, comment="JSON: [[policy_version, start, end], …]"),
    Column("oldest_version", Integer, nullable=False),
    Column("policy_version", Integer, nullable=False),
    Column("finish_reason", String, nullable=False),
    Column("temperature", Float, nullable=False),
    Column("sampling", Text, nullable=False, comment="JSON"),
    Column("finished_time", Float, nullable=False),
    Column("source", String, nullable=False, server_default="user", comment="See `RolloutSource`"),
    Column("columns", Text, nullable=False, server_default="{}", comment="JSON, of the prompt"),
    Column("group_size", Integer, nullable=False, server_default="1", comment="Siblings asked for"),
    Column("prompt_sha256", String, nullable=False, server_default="", comment="Of prompt_tokens"),
    Column("session_id", String, nullable=False, server_default="", comment="The application's"),
    Column("reasoning_text", PlainText, nullable=False, server_default=""),
    Column("reasoning_tokens", Integer, nullable=False, server_default="0", comment="The first"),
    Column("tags", Text, nullable=False, server_default="{}", comment="JSON, the application's"),
    Index("rollouts_group", "group_id"),
    Index("rollouts_session", "session_id", "tenant"),
    Index("rollouts_source", "source", "policy_version"),
    Index("rollouts_time", "finished_time"),
)

feedback = Table(
    "feedback",
    metadata,
    Column("feedback_id", String, primary_key=True),
    Column("kind", String, nullable=False),
    Column("tenant", String, nullable=False),
    Column("user_hash", String, nullable=False, index=True),
    Column("session_id", String, nullable=False, server_default="", comment="What it is about"),
    Column("completion_id", String, nullable=False, comment="Of a session that of its last turn"),
    Column("completion_ids", Text, nullable=False, comment="JSON: every completion it speaks of"),
    Column("payload", Text, nullable=False, comment="JSON: the judgement"),
    Column("up", Boolean, nullable=True, comment="The verdict of a thumb"),
    Column("metric", String, nullable=True, comment="The name of a metric"),
    Column("measured", Float, nullable=True, comment="Its value; 0 and 1 of a boolean"),
    Column("is_boolean", Boolean, nullable=True, comment="Whether that is one"),
    Column("metadata", Text, nullable=False, comment="JSON"),
    Column("api_key_id", String, nullable=False, server_default="", comment="It came with"),
    Column("api_key_name", String, nullable=False, server_default=""),
    Column("accepted_time", Float, nullable=False),
    Column("sequence", Integer, nullable=False, comment="In the feedback stream"),
    Column(
        "status",
        String,
        nullable=False,
        server_default="accepted",
        comment="accepted, retracted, expired",
    ),
    Index("feedback_time", "accepted_time"),
    Index("feedback_votes", "completion_id", "user_hash", "kind"),
    Index("feedback_kind", "kind", "accepted_time"),
    Index("feedback_metric", "metric", "accepted_time"),
    Index("feedback_user_time", "user_hash", "accepted_time", "kind", "sequence"),
    Index("feedback_key", "api_key_name"),
    Index("feedback_key_id", "api_key_id"),
    Index("feedback_session", "session_id", "tenant"),
)

retractions = Table(
    "retractions",
    metadata,
    Column("feedback_id", String, primary_key=True),
    Column("user_hash", String, nullable=False, index=True),
    Column("retracted_time", Float, nullable=False),
    Column("sequence", Integer, nullable=False, comment="In the feedback stream"),
    comment="What was taken back, also before the feedback itself was recorded.",
)

signals = Table(
    "signals",
    metadata,
    Column("signal_id", String, primary_key=True, comment="Unique for its user"),
    Column("user_hash", String, primary_key=True),
    Column("tenant", String, nullable=False),
    Column("completion_id", String, nullable=False),
    Column("kind", String, nullable=False, comment="copied, regenerated, continued, …"),
    Column("distance", Float, nullable=True, comment="Of an edit: the share that was changed"),
    Column("metadata", Text, nullable=False, comment="JSON"),
    Column("api_key_id", String, nullable=False, comment="It came with"),
    Column("accepted_time", Float, nullable=False),
    Column("sequence", Integer, nullable=False, comment="In the stream of signals"),
    Index("signals_completion", "completion_id", "user_hash"),
    Index("signals_user", "user_hash"),
    Index("signals_time", "accepted_time"),
    comment="What users did with answers: no judgements.",
)

follow_ups = Table(
    "follow_ups",
    metadata,
    Column("completion_id", String, primary_key=True, comment="The answer"),
    Column("next_id", String, nullable=False, comment="The rollout whose prompt has the message"),
    Column("user_hash", String, nullable=False, index=True),
    Column("asked_time", Float, nullable=False, comment="When the next rollout finished"),
    Column("judged_time", Float, nullable=True, comment="Absent until it was judged"),
    Column("label", String, nullable=True, comment="satisfied, corrected, complained"),
    Column("probability", Float, nullable=True, comment="Of the label"),
    Column("note", PlainText, nullable=True, comment="Why there is no label"),
    Index("follow_ups_next", "next_id"),
    Index("follow_ups_time", "judged_time", "asked_time"),
    comment="What users wrote after answers, without its text.",
)

scores = Table(
    "scores",
    metadata,
    Column("completion_id", String, primary_key=True),
    Column("reward_model_version", Integer, primary_key=True, autoincrement=False),
    Column("reward", Float, nullable=True, comment="Absent when no scorer could score it"),
    Column("informative", Boolean, nullable=False),
    Column("results", Text, nullable=False, comment="JSON: scorer, score, weight, informative"),
    Column("scored_time", Float, nullable=False),
    Index("scores_time", "scored_time"),
)

rankings = Table(
    "rankings",
    metadata,
    Column("feedback_id", String, primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False, comment="0 is the best"),
    Column("completion_id", String, nullable=False, index=True),
    comment="The completions a ranking speaks of: it can be learned from once all are recorded.",
)

held_out = Table(
    "held_out",
    metadata,
    Column("prompt_sha256", String, primary_key=True),
    comment="Prompts that are only evaluated on.",
)

reference_logprobs = Table(
    "reference_logprobs",
    metadata,
    Column("sequence", String, primary_key=True, comment="Hash of its tokens and temperature"),
    Column("logprobs", LargeBinary, nullable=False, comment="float32, little-endian"),
    comment="What the reference policy gives each completion token; good for one base model.",
)

samples = Table(
    "samples",
    metadata,
    Column("sample_id", String, primary_key=True),
    Column("objective", String, primary_key=True),
    Column("kind", String, nullable=False, comment="How it is built: see `sample_rules`"),
    Column("state", String, nullable=False, comment="See `SampleState`"),
    Column("note", PlainText, nullable=True, comment="Why it was refused"),
    Column("completion_id", String, nullable=False, comment="The chosen one of a pair"),
    Column("rejected_id", String, nullable=True, comment="The other one of a pair, or `next_id`"),
    Column("weight", Float, nullable=False, server_default="1"),
    Column("topic", String, nullable=False, server_default="", comment="What a verdict is about"),
    Column("verdict", String, nullable=False, server_default="", comment="What it says of that"),
    Column("current", Boolean, nullable=False, server_default=true(), comment="The last word"),
    Column("reported", Boolean, nullable=False, server_default=false(), comment="Dead letter sent"),
    Column("user_hash", String, nullable=False),
    Column("feedback_id", String, nullable=True, comment="Absent for scored rollouts"),
    Column("accepted_time", Float, nullable=False, comment="When its event was accepted"),
    Column("recorded_time", Float, nullable=False, comment="When the ledger learned of it"),
    Column("features", LargeBinary, nullable=True, comment="float32, little-endian"),
    Index("samples_open", "objective", "state", "accepted_time"),
    Index("samples_topic", "topic", "objective", "user_hash"),
    Index("samples_completion", "completion_id", "objective", "user_hash"),
    Index("samples_rejected", "rejected_id"),
    Index("samples_feedback", "feedback_id"),
    Index("samples_user", "user_hash"),
)

steps = Table(
    "steps",
    metadata,
    Column("model", String, primary_key=True, comment="policy or reward_model"),
    Column("step", Integer, primary_key=True, autoincrement=False),
    Column("checkpoint", String, nullable=False),
    Column("skipped", Boolean, nullable=False, comment="The guard left the weights as they were"),
    Column("metrics", Text, nullable=False, comment="JSON"),
    Column("committed_time", Float, nullable=False),
)

uses = Table(
    "uses",
    metadata,
    Column("sample_id", String, nullable=False),
    Column("objective", String, nullable=False),
    Column("epoch", Integer, nullable=False, comment="0 is the first use, later ones are replays"),
    Column("model", String, nullable=False),
    Column("step", Integer, nullable=False),
    Column("policy_version", Integer, nullable=True, comment="Absent until published"),
    UniqueConstraint("sample_id", "objective", "epoch"),
    ForeignKeyConstraint(["model", "step"], ["steps.model", "steps.step"]),
    ForeignKeyConstraint(["sample_id", "objective"], ["samples.sample_id", "samples.objective"]),
    Index("uses_step", "model", "step"),
    Index("uses_version", "model", "policy_version"),
    Index("uses_objective", "objective"),
)

versions = Table(
    "versions",
    metadata,
    Column("model", String, primary_key=True, comment="policy or reward_model"),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("policy", String, nullable=False, comment="Name in the manifest"),
    Column("parent", Integer, nullable=False),
    Column("state", String, nullable=False, comment="candidate, stable, retired, quarantined"),
    Column("stage", String, nullable=False, comment="saved, stored, announced, released"),
    Column("first_step", Integer, nullable=False, comment="Excluded"),
    Column("last_step", Integer, nullable=False, comment="Included"),
    Column("manifest", Text, nullable=False, comment="JSON; without files until stored"),
    Column("uri", String, nullable=False),
    Column("manifest_sha256", String, nullable=False),
    Column("created_time", Float, nullable=False),
    Column("activated_time", Float, nullable=True),
    Column("abandoned", Boolean, nullable=False, comment="Its steps were rolled back"),
    Column("settings", Text, nullable=False, server_default="{}", comment="JSON: of its training"),
    Index("versions_parent", "model", "parent"),
)

promotions = Table(
    "promotions",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("model", String, nullable=False),
    Column("version", Integer, nullable=False),
    Column("previous", Integer, nullable=False),
    Column("action", String, nullable=False, comment="publish, promote or roll back"),
    Column("actor", String, nullable=False),
    Column("time", Float, nullable=False),
)

decisions = Table(
    "decisions",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("model", String, nullable=False, comment="policy or reward_model"),
    Column("version", Integer, nullable=False),
    Column("kind", String, nullable=False, comment="See `decisions.Kind`"),
    Column("outcome", String, nullable=False, comment="pass, fail, hold, promote, roll_back, …"),
    Column("numbers", Text, nullable=False, comment="JSON: all that was measured"),
    Column("reason", Text, nullable=False),
    Column("actor", String, nullable=False),
    Column("time", Float, nullable=False),
    Index("decisions_version", "model", "version"),
    comment="What was decided about versions, by whom and on which figures; never changed.",
)

undone_uses = Table(
    "undone_uses",
    metadata,
    Column("model", String, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("sample_id", String, primary_key=True),
    Column("objective", String, primary_key=True),
    Column("epoch", Integer, primary_key=True, autoincrement=False),
    Column("step", Integer, nullable=False),
    Column("blamed", Boolean, nullable=False, comment="The version was refused for what it is"),
    Index("undone_uses_sample", "sample_id", "objective"),
    comment="What a quarantined version had learned from, before it was put back.",
)

effects = Table(
    "effects",
    metadata,
    Column("sample_id", String, primary_key=True),
    Column("objective", String, primary_key=True),
    Column("part", String, primary_key=True, comment="answer, chosen, rejected"),
    Column("policy_version", Integer, primary_key=True, autoincrement=False),
    Column("tokens", Integer, nullable=False),
    Column("logprob_before", Float, nullable=False, comment="Before the step that used it"),
    Column("logprob_after", Float, nullable=False, comment="Under the version"),
    comment="How likely a version made what its feedback is about.",
)

forgotten = Table(
    "forgotten",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("user_hash", String, nullable=False, index=True, comment="Empty: it was a session"),
    Column("tenant", String, nullable=False, server_default="", comment="Of the session"),
    Column("session_id", String, nullable=False, server_default=""),
    Column("time", Float, nullable=False),
    Column("rollouts", Integer, nullable=False),
    Column("feedback", Integer, nullable=False),
    Column("policy_versions", Text, nullable=False, comment="JSON: that had used them"),
    Column("reward_model_versions", Text, nullable=False, comment="JSON: that had used them"),
    Index("forgotten_session", "session_id", "tenant"),
    comment="That users or sessions were forgotten, and which weights still carry them.",
)

alarms = Table(
    "alarms",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("name", String, nullable=False),
    Column("raised_time", Float, nullable=False),
    Column("cleared_time", Float, nullable=True, comment="Absent while it is raised"),
    Column("numbers", Text, nullable=False, comment="JSON: what it was told by, at first"),
    Index("alarms_name", "name", "raised_time"),
)
