"""One module a command of ``fedsvd``; each has ``run(words)``, which `fedsvd.cli` calls."""
