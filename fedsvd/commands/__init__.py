"""One module per command of ``fedsvd``; each has a function ``run(arguments)``, which `fedsvd.cli` calls."""
