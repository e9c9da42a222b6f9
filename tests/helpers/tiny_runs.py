"""Settings of runs that take a second or so."""

TINY = ["experiment=smoke", "plots=false", "data.max_train_examples=60", "data.max_test_examples=20"]
# One round, with the accountant that is fast.
ONE_ROUND = [*TINY, "train.num_rounds=1", "privacy.accountant=rdp"]
