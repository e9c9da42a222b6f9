"""Examples in docstrings."""

import doctest
from operator import attrgetter

import fedsvd


def run_example(name: str) -> None:
    """Run the example of a public name of fedsvd."""
    tests = doctest.DocTestFinder(recurse=False).find(attrgetter(name)(fedsvd), name, globs={})
    examples = [test for test in tests if test.examples]
    assert len(examples) == 1, f"{name} has no example"
    assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(examples[0]).failed == 0
