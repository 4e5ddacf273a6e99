"""What a user can get wrong. Each is printed on one line and ends the command with exit code 2.

    SegbenchError
    ├── SettingError    a suite, an option or a name is not one that exists or not of its kind
    ├── DataError       a dataset is missing, incomplete or wrong
    ├── ModelError      a model cannot be built, loaded or fed as asked
    └── RecordError     a results folder or record cannot be read or written

A message says where, what was found, what is allowed and what to do. `assert` is for our own bugs. What a user should
know but may go on with is a `SegbenchWarning`.
"""


class SegbenchError(Exception):
    """A mistake that the user can mend; `str(error)` is the one line to print."""


class SettingError(SegbenchError):
    pass


class DataError(SegbenchError):
    pass


class ModelError(SegbenchError):
    pass


class RecordError(SegbenchError):
    pass


class SegbenchWarning(UserWarning):
    """Nothing is wrong, but something is not as it should be; the command line prints it on one line."""
