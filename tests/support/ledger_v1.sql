BEGIN TRANSACTION;
CREATE TABLE facts (
	name VARCHAR NOT NULL, 
	value TEXT NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "facts" VALUES('schema_version','1');
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
INSERT INTO "feedback" VALUES('t1','thumb','default','u1','a','["a"]','{"up":true}',1,'{}',1767225601.0,0);
INSERT INTO "feedback" VALUES('t2','thumb','default','u1','b','["b"]','{"up":false}',0,'{}',1767225602.0,1);
INSERT INTO "feedback" VALUES('t3','thumb','default','u2','c','["c"]','{"up":true}',1,'{}',1767225603.0,2);
INSERT INTO "feedback" VALUES('t4','thumb','default','u2','c','["c"]','{"up":false}',0,'{}',1767225604.0,3);
INSERT INTO "feedback" VALUES('p1','comparison','default','u1','a','["a","b"]','{"chosen":"a","rejected":["b"]}',NULL,'{}',1767225605.0,4);
INSERT INTO "feedback" VALUES('p2','comparison','default','u1','b','["b","a"]','{"chosen":"b","rejected":["a"]}',NULL,'{}',1767225606.0,5);
INSERT INTO "feedback" VALUES('t5','thumb','default','u1','d','["d"]','{"up":true}',1,'{}',1767225607.0,6);
INSERT INTO "feedback" VALUES('p3','comparison','default','u1','a','["a","d"]','{"chosen":"a","rejected":["d"]}',NULL,'{}',1767225607.5,7);
INSERT INTO "feedback" VALUES('r1','rating','default','u1','a','["a"]','{"value":4.0}',NULL,'{}',1767225608.0,8);
INSERT INTO "feedback" VALUES('r2','rating','default','u1','d','["d"]','{"value":2.0}',NULL,'{}',1767225609.0,9);
INSERT INTO "feedback" VALUES('k1','ranking','default','u1','b','["b","a"]','{"completion_ids":["b","a"]}',NULL,'{}',1767225610.0,10);
INSERT INTO "feedback" VALUES('e1','demonstration','default','u1','a','["a"]','{"text":"Hi!"}',NULL,'{}',1767225611.0,11);
INSERT INTO "feedback" VALUES('c1','comment','default','u1','a','["a"]','{"text":"nice"}',NULL,'{}',1767225612.0,12);
INSERT INTO "feedback" VALUES('t6','thumb','default','u1','d','["d"]','{"up":false}',0,'{}',1767225620.0,20);
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
	PRIMARY KEY (completion_id)
);
INSERT INTO "rollouts" VALUES('a','g','tuneloop','default','u1','[["user","Hi"]]','<user>Hi','Hello.',X'010000000500000006000000',X'070000000800000002000000',X'000000BF000000BF000000BF','[[0,0,3]]',0,0,'stop',0.7,'{"temperature":0.7,"top_p":1.0,"top_k":0,"max_tokens":256,"stop":[],"n":2,"seed":null,"presence_penalty":0.0,"frequency_penalty":0.0,"top_logprobs":null,"logit_bias":{}}',1767225600.0);
INSERT INTO "rollouts" VALUES('b','g','tuneloop','default','u1','[["user","Hi"]]','<user>Hi','Hello.',X'010000000500000006000000',X'0900000002000000',X'000000BF000000BF','[[0,0,2]]',0,0,'stop',0.7,'{"temperature":0.7,"top_p":1.0,"top_k":0,"max_tokens":256,"stop":[],"n":2,"seed":null,"presence_penalty":0.0,"frequency_penalty":0.0,"top_logprobs":null,"logit_bias":{}}',1767225600.0);
INSERT INTO "rollouts" VALUES('c','group-c','tuneloop','default','u2','[["user","Hi"]]','<user>Hi','Hello.',X'0100000007000000',X'070000000800000002000000',X'000000BF000000BF000000BF','[[0,0,3]]',0,0,'stop',0.7,'{"temperature":0.7,"top_p":1.0,"top_k":0,"max_tokens":256,"stop":[],"n":1,"seed":null,"presence_penalty":0.0,"frequency_penalty":0.0,"top_logprobs":null,"logit_bias":{}}',1767225600.0);
INSERT INTO "rollouts" VALUES('d','group-d','tuneloop','default','u1','[["user","Hi"]]','<user>Hi','Hello.',X'0100000009000000',X'070000000800000002000000',X'000000BF000000BF000000BF','[[0,0,3]]',0,0,'stop',0.7,'{"temperature":0.7,"top_p":1.0,"top_k":0,"max_tokens":256,"stop":[],"n":1,"seed":null,"presence_penalty":0.0,"frequency_penalty":0.0,"top_logprobs":null,"logit_bias":{}}',1767225600.0);
CREATE TABLE samples (
	sample_id VARCHAR NOT NULL, 
	objective VARCHAR NOT NULL, 
	state VARCHAR NOT NULL, 
	note TEXT, 
	completion_id VARCHAR NOT NULL, 
	rejected_id VARCHAR, 
	up BOOLEAN, 
	user_hash VARCHAR NOT NULL, 
	feedback_id VARCHAR, 
	accepted_time FLOAT NOT NULL, 
	recorded_time FLOAT NOT NULL, 
	PRIMARY KEY (sample_id, objective)
);
INSERT INTO "samples" VALUES('t1','kto','used',NULL,'a',NULL,1,'u1','t1',1767225601.0,100.0);
INSERT INTO "samples" VALUES('t1','reward_model','open',NULL,'a',NULL,1,'u1','t1',1767225601.0,100.0);
INSERT INTO "samples" VALUES('t2','kto','open',NULL,'b',NULL,0,'u1','t2',1767225602.0,100.0);
INSERT INTO "samples" VALUES('t2','reward_model','open',NULL,'b',NULL,0,'u1','t2',1767225602.0,100.0);
INSERT INTO "samples" VALUES('t3','kto','used',NULL,'c',NULL,1,'u2','t3',1767225603.0,100.0);
INSERT INTO "samples" VALUES('t3','reward_model','superseded',NULL,'c',NULL,1,'u2','t3',1767225603.0,100.0);
INSERT INTO "samples" VALUES('t4','kto','open',NULL,'c',NULL,0,'u2','t4',1767225604.0,100.0);
INSERT INTO "samples" VALUES('t4','reward_model','open',NULL,'c',NULL,0,'u2','t4',1767225604.0,100.0);
INSERT INTO "samples" VALUES('p1','dpo','open',NULL,'a','b',NULL,'u1','p1',1767225605.0,100.0);
INSERT INTO "samples" VALUES('p1','reward_model','open',NULL,'a','b',NULL,'u1','p1',1767225605.0,100.0);
INSERT INTO "samples" VALUES('p2','dpo','open',NULL,'b','a',NULL,'u1','p2',1767225606.0,100.0);
INSERT INTO "samples" VALUES('p2','reward_model','open',NULL,'b','a',NULL,'u1','p2',1767225606.0,100.0);
INSERT INTO "samples" VALUES('t5','kto','superseded',NULL,'d',NULL,1,'u1','t5',1767225607.0,100.0);
INSERT INTO "samples" VALUES('t5','reward_model','superseded',NULL,'d',NULL,1,'u1','t5',1767225607.0,100.0);
INSERT INTO "samples" VALUES('p3','dpo','refused','the completions answer different prompts','a','d',NULL,'u1','p3',1767225607.5,100.0);
INSERT INTO "samples" VALUES('p3','reward_model','open',NULL,'a','d',NULL,'u1','p3',1767225607.5,100.0);
INSERT INTO "samples" VALUES('siblings-0c5a3310ef3de76e305ceac9b591ae6d','dpo','open',NULL,'a','b',NULL,'u1',NULL,1767225602.0,100.0);
INSERT INTO "samples" VALUES('a','ppo','open',NULL,'a',NULL,NULL,'',NULL,1767225600.0,100.0);
INSERT INTO "samples" VALUES('t6','kto','open',NULL,'d',NULL,0,'u1','t6',1767225620.0,100.0);
INSERT INTO "samples" VALUES('t6','reward_model','open',NULL,'d',NULL,0,'u1','t6',1767225620.0,100.0);
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
INSERT INTO "scores" VALUES('c',1,NULL,0,'[{"scorer":"reward_model","score":null,"weight":1.0,"informative":true}]',1767225600.0);
CREATE TABLE steps (
	model VARCHAR NOT NULL, 
	step INTEGER NOT NULL, 
	checkpoint VARCHAR NOT NULL, 
	skipped BOOLEAN NOT NULL, 
	metrics TEXT NOT NULL, 
	committed_time FLOAT NOT NULL, 
	PRIMARY KEY (model, step)
);
INSERT INTO "steps" VALUES('policy',1,'step-00000001',0,'{"loss": 0.5}',200.0);
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
INSERT INTO "uses" VALUES('t3','kto',0,'policy',1,NULL);
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
CREATE INDEX rollouts_group ON rollouts (group_id);
CREATE INDEX ix_rollouts_user_hash ON rollouts (user_hash);
CREATE INDEX ix_feedback_user_hash ON feedback (user_hash);
CREATE INDEX feedback_votes ON feedback (completion_id, user_hash, kind);
CREATE INDEX samples_rejected ON samples (rejected_id);
CREATE INDEX samples_feedback ON samples (feedback_id);
CREATE INDEX samples_completion ON samples (completion_id, objective, user_hash);
CREATE INDEX samples_open ON samples (objective, state, accepted_time);
CREATE INDEX samples_user ON samples (user_hash);
CREATE INDEX uses_step ON uses (model, step);
CREATE INDEX uses_objective ON uses (objective);
CREATE INDEX uses_version ON uses (model, policy_version);
COMMIT;
