BEGIN TRANSACTION;
CREATE TABLE facts (
	name VARCHAR NOT NULL, 
	value TEXT NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "facts" VALUES('schema_version','2');
INSERT INTO "facts" VALUES('policy','tuneloop');
INSERT INTO "facts" VALUES('base model','abc');
CREATE TABLE feedback (
	feedback_id VARCHAR NOT NULL, 
	kind VARCHAR NOT NULL, 
	tenant VARCHAR NOT NULL, 
	user_hash VARCHAR NOT NULL, 
	completion_id VARCHAR NOT NULL, 
	completion_ids TEXT NOT NULL, 
	payload TEXT NOT NULL, 
	up BOOLEAN, 
	metadata TEXT NOT NULL, 
	accepted_time FLOAT NOT NULL, 
	sequence INTEGER NOT NULL, 
	PRIMARY KEY (feedback_id)
);
INSERT INTO "feedback" VALUES('t1','thumb','default','u1','a','["a"]','{"up":true}',1,'{}',1767225600.0,1);
INSERT INTO "feedback" VALUES('t2','thumb','default','u1','b','["b"]','{"up":false}',0,'{}',1767225601.0,2);
INSERT INTO "feedback" VALUES('t3','thumb','default','u1','c','["c"]','{"up":true}',1,'{}',1767225602.0,3);
INSERT INTO "feedback" VALUES('t4','thumb','default','u1','c','["c"]','{"up":false}',0,'{}',1767225603.0,4);
INSERT INTO "feedback" VALUES('t5','thumb','default','u1','x','["x"]','{"up":true}',1,'{}',1767225604.0,5);
INSERT INTO "feedback" VALUES('p1','comparison','default','u1','a','["a","b"]','{"chosen":"a","rejected":["b"]}',NULL,'{}',1767225605.0,6);
INSERT INTO "feedback" VALUES('k1','ranking','default','u2','b','["b","a"]','{"completion_ids":["b","a"]}',NULL,'{}',1767225606.0,7);
INSERT INTO "feedback" VALUES('e1','demonstration','default','u1','a','["a"]','{"text":"Hi!"}',NULL,'{}',1767225607.0,8);
INSERT INTO "feedback" VALUES('r1','rating','default','u1','a','["a"]','{"value":4.0}',NULL,'{}',1767225608.0,9);
INSERT INTO "feedback" VALUES('m1','comment','default','u1','a','["a"]','{"text":"hm"}',NULL,'{}',1767225609.0,10);
CREATE TABLE held_out (
	prompt_sha256 VARCHAR NOT NULL, 
	PRIMARY KEY (prompt_sha256)
);
CREATE TABLE promotions (
	number INTEGER NOT NULL, 
	model VARCHAR NOT NULL, 
	version INTEGER NOT NULL, 
	previous INTEGER NOT NULL, 
	action VARCHAR NOT NULL, 
	actor VARCHAR NOT NULL, 
	time FLOAT NOT NULL, 
	PRIMARY KEY (number)
);
CREATE TABLE rankings (
	feedback_id VARCHAR NOT NULL, 
	position INTEGER NOT NULL, 
	completion_id VARCHAR NOT NULL, 
	PRIMARY KEY (feedback_id, position)
);
INSERT INTO "rankings" VALUES('k1',0,'b');
INSERT INTO "rankings" VALUES('k1',1,'a');
CREATE TABLE reference_logprobs (
	sequence VARCHAR NOT NULL, 
	logprobs BLOB NOT NULL, 
	PRIMARY KEY (sequence)
);
CREATE TABLE rollouts (
	completion_id VARCHAR NOT NULL, 
	group_id VARCHAR NOT NULL, 
	policy VARCHAR NOT NULL, 
	tenant VARCHAR NOT NULL, 
	user_hash VARCHAR NOT NULL, 
	messages TEXT NOT NULL, 
	prompt_text TEXT NOT NULL, 
	completion_text TEXT NOT NULL, 
	prompt_tokens BLOB NOT NULL, 
	completion_tokens BLOB NOT NULL, 
	generation_logprobs BLOB NOT NULL, 
	spans TEXT NOT NULL, 
	oldest_version INTEGER NOT NULL, 
	policy_version INTEGER NOT NULL, 
	finish_reason VARCHAR NOT NULL, 
	temperature FLOAT NOT NULL, 
	sampling TEXT NOT NULL, 
	finished_time FLOAT NOT NULL, 
	source VARCHAR DEFAULT 'user' NOT NULL, 
	columns TEXT DEFAULT '{}' NOT NULL, 
	group_size INTEGER DEFAULT '1' NOT NULL, 
	prompt_sha256 VARCHAR DEFAULT '' NOT NULL, 
	PRIMARY KEY (completion_id)
);
INSERT INTO "rollouts" VALUES('a','g','tuneloop','default','u1','[["user","Hi"]]','<user>Hi','Hello.',X'010000000500000006000000',X'070000000800000002000000',X'000000BF000000BF000000BF','[[0,0,3]]',0,0,'stop',0.7,'{"temperature":0.7,"top_p":1.0,"top_k":0,"max_tokens":256,"stop":[],"n":2,"seed":null,"presence_penalty":0.0,"frequency_penalty":0.0,"top_logprobs":null,"logit_bias":{}}',1767225600.0,'user','{}',2,'4860ca6f42d820d6a692ba901ec2a1e92f53d17440a9056b0438eac36681361a');
INSERT INTO "rollouts" VALUES('b','g','tuneloop','default','u1','[["user","Hi"]]','<user>Hi','Other.',X'010000000500000006000000',X'070000000900000002000000',X'000000BF000000BF000000BF','[[0,0,3]]',0,0,'stop',0.7,'{"temperature":0.7,"top_p":1.0,"top_k":0,"max_tokens":256,"stop":[],"n":2,"seed":null,"presence_penalty":0.0,"frequency_penalty":0.0,"top_logprobs":null,"logit_bias":{}}',1767225600.0,'user','{}',2,'4860ca6f42d820d6a692ba901ec2a1e92f53d17440a9056b0438eac36681361a');
INSERT INTO "rollouts" VALUES('c','group-c','tuneloop','default','u1','[["user","Hi"]]','<user>Hi','Hello.',X'0100000007000000',X'070000000800000002000000',X'000000BF000000BF000000BF','[[0,0,3]]',0,0,'stop',0.7,'{"temperature":0.7,"top_p":1.0,"top_k":0,"max_tokens":256,"stop":[],"n":1,"seed":null,"presence_penalty":0.0,"frequency_penalty":0.0,"top_logprobs":null,"logit_bias":{}}',1767225600.0,'user','{}',1,'f0e6dfdca14da812bd3febae22fe83f4f7ea295365ca71128ed6502c9847b92e');
CREATE TABLE samples (
	sample_id VARCHAR NOT NULL, 
	objective VARCHAR NOT NULL, 
	kind VARCHAR NOT NULL, 
	state VARCHAR NOT NULL, 
	note TEXT, 
	completion_id VARCHAR NOT NULL, 
	rejected_id VARCHAR, 
	weight FLOAT DEFAULT '1' NOT NULL, 
	topic VARCHAR DEFAULT '' NOT NULL, 
	verdict VARCHAR DEFAULT '' NOT NULL, 
	current BOOLEAN DEFAULT 1 NOT NULL, 
	reported BOOLEAN DEFAULT 0 NOT NULL, 
	user_hash VARCHAR NOT NULL, 
	feedback_id VARCHAR, 
	accepted_time FLOAT NOT NULL, 
	recorded_time FLOAT NOT NULL, 
	PRIMARY KEY (sample_id, objective)
);
INSERT INTO "samples" VALUES('t1','kto','thumb','used',NULL,'a',NULL,1.0,'thumb:a','up',1,0,'u1','t1',1767225600.0,100.0);
INSERT INTO "samples" VALUES('t1','reward_model','thumb','open',NULL,'a',NULL,1.0,'thumb:a','up',1,0,'u1','t1',1767225600.0,100.0);
INSERT INTO "samples" VALUES('t2','kto','thumb','open',NULL,'b',NULL,1.0,'thumb:b','down',1,0,'u1','t2',1767225601.0,100.0);
INSERT INTO "samples" VALUES('t2','reward_model','thumb','open',NULL,'b',NULL,1.0,'thumb:b','down',1,0,'u1','t2',1767225601.0,100.0);
INSERT INTO "samples" VALUES('t3','kto','thumb','superseded',NULL,'c',NULL,1.0,'thumb:c','up',0,0,'u1','t3',1767225602.0,100.0);
INSERT INTO "samples" VALUES('t3','reward_model','thumb','superseded',NULL,'c',NULL,1.0,'thumb:c','up',0,0,'u1','t3',1767225602.0,100.0);
INSERT INTO "samples" VALUES('t4','kto','thumb','open',NULL,'c',NULL,1.0,'thumb:c','down',1,0,'u1','t4',1767225603.0,100.0);
INSERT INTO "samples" VALUES('t4','reward_model','thumb','open',NULL,'c',NULL,1.0,'thumb:c','down',1,0,'u1','t4',1767225603.0,100.0);
INSERT INTO "samples" VALUES('t5','kto','thumb','open',NULL,'x',NULL,1.0,'thumb:x','up',1,0,'u1','t5',1767225604.0,100.0);
INSERT INTO "samples" VALUES('t5','reward_model','thumb','open',NULL,'x',NULL,1.0,'thumb:x','up',1,0,'u1','t5',1767225604.0,100.0);
INSERT INTO "samples" VALUES('p1','dpo','pair','open',NULL,'a','b',1.0,'pair:a|b','a',1,0,'u1','p1',1767225605.0,100.0);
INSERT INTO "samples" VALUES('p1','reward_model','pair','open',NULL,'a','b',1.0,'pair:a|b','a',1,0,'u1','p1',1767225605.0,100.0);
INSERT INTO "samples" VALUES('k1.0-1','dpo','pair','open',NULL,'b','a',1.0,'pair:a|b','b',1,0,'u2','k1',1767225606.0,100.0);
INSERT INTO "samples" VALUES('k1','reward_model','ranking','open',NULL,'b',NULL,1.0,'ranking:a|b','b|a',1,0,'u2','k1',1767225606.0,100.0);
INSERT INTO "samples" VALUES('e1','sft','edit','open',NULL,'a',NULL,1.0,'edit:a','ca51ce1fb15acc6d69b8a5700256172fcc507e02073e6f19592e341bd6508ab8',1,0,'u1','e1',1767225607.0,100.0);
INSERT INTO "samples" VALUES('e1','dpo','edit','open',NULL,'a',NULL,1.0,'edit:a','ca51ce1fb15acc6d69b8a5700256172fcc507e02073e6f19592e341bd6508ab8',1,0,'u1','e1',1767225607.0,100.0);
INSERT INTO "samples" VALUES('e1','reward_model','edit','open',NULL,'a',NULL,1.0,'edit:a','ca51ce1fb15acc6d69b8a5700256172fcc507e02073e6f19592e341bd6508ab8',1,0,'u1','e1',1767225607.0,100.0);
INSERT INTO "samples" VALUES('r1','reward_model','rating','open',NULL,'a',NULL,1.0,'rating:a','4.0',1,0,'u1','r1',1767225608.0,100.0);
INSERT INTO "samples" VALUES('siblings-0c5a3310ef3de76e305ceac9b591ae6d','dpo','siblings','open',NULL,'a','b',1.0,'','a',1,0,'u1',NULL,1767225601.0,100.0);
INSERT INTO "samples" VALUES('a','ppo','score','open',NULL,'a',NULL,1.0,'','',1,0,'',NULL,1767225600.0,100.0);
CREATE TABLE scores (
	completion_id VARCHAR NOT NULL, 
	reward_model_version INTEGER NOT NULL, 
	reward FLOAT, 
	informative BOOLEAN NOT NULL, 
	results TEXT NOT NULL, 
	scored_time FLOAT NOT NULL, 
	PRIMARY KEY (completion_id, reward_model_version)
);
INSERT INTO "scores" VALUES('a',1,0.5,1,'[{"scorer":"reward_model","score":0.5,"weight":1.0,"informative":true}]',1767225600.0);
CREATE TABLE steps (
	model VARCHAR NOT NULL, 
	step INTEGER NOT NULL, 
	checkpoint VARCHAR NOT NULL, 
	skipped BOOLEAN NOT NULL, 
	metrics TEXT NOT NULL, 
	committed_time FLOAT NOT NULL, 
	PRIMARY KEY (model, step)
);
INSERT INTO "steps" VALUES('policy',1,'step-1',0,'{"loss": 0.5}',100.0);
CREATE TABLE uses (
	sample_id VARCHAR NOT NULL, 
	objective VARCHAR NOT NULL, 
	epoch INTEGER NOT NULL, 
	model VARCHAR NOT NULL, 
	step INTEGER NOT NULL, 
	policy_version INTEGER, 
	UNIQUE (sample_id, objective, epoch), 
	FOREIGN KEY(model, step) REFERENCES steps (model, step), 
	FOREIGN KEY(sample_id, objective) REFERENCES samples (sample_id, objective)
);
INSERT INTO "uses" VALUES('t1','kto',0,'policy',1,NULL);
CREATE TABLE versions (
	model VARCHAR NOT NULL, 
	version INTEGER NOT NULL, 
	policy VARCHAR NOT NULL, 
	parent INTEGER NOT NULL, 
	state VARCHAR NOT NULL, 
	stage VARCHAR NOT NULL, 
	first_step INTEGER NOT NULL, 
	last_step INTEGER NOT NULL, 
	manifest TEXT NOT NULL, 
	uri VARCHAR NOT NULL, 
	manifest_sha256 VARCHAR NOT NULL, 
	created_time FLOAT NOT NULL, 
	activated_time FLOAT, 
	abandoned BOOLEAN NOT NULL, 
	PRIMARY KEY (model, version)
);
CREATE INDEX rollouts_source ON rollouts (source, policy_version);
CREATE INDEX rollouts_group ON rollouts (group_id);
CREATE INDEX ix_rollouts_user_hash ON rollouts (user_hash);
CREATE INDEX ix_feedback_user_hash ON feedback (user_hash);
CREATE INDEX feedback_kind ON feedback (kind, accepted_time);
CREATE INDEX feedback_votes ON feedback (completion_id, user_hash, kind);
CREATE INDEX scores_time ON scores (scored_time);
CREATE INDEX ix_rankings_completion_id ON rankings (completion_id);
CREATE INDEX samples_feedback ON samples (feedback_id);
CREATE INDEX samples_topic ON samples (topic, objective, user_hash);
CREATE INDEX samples_user ON samples (user_hash);
CREATE INDEX samples_open ON samples (objective, state, accepted_time);
CREATE INDEX samples_completion ON samples (completion_id, objective, user_hash);
CREATE INDEX samples_rejected ON samples (rejected_id);
CREATE INDEX uses_step ON uses (model, step);
CREATE INDEX uses_version ON uses (model, policy_version);
CREATE INDEX uses_objective ON uses (objective);
COMMIT;
