"""interpreted.py: a file of its own, so that two workers share what the interpreter is slow at."""


def test_in_the_interpreter(interpret):
    interpret("interpreted.py")
