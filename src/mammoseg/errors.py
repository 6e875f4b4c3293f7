"""The exceptions mammoseg raises. Each message says what was expected, what was got, where, and what to do."""

DEBUG_VARIABLE = "MAMMOSEG_DEBUG"
"""Environment variable: where it is set, unexpected errors show where they came from."""


class MammosegError(Exception):
    """Base of every error that a user or caller can act on; the command line prints it as one line."""


class UsageError(MammosegError):
    """The request itself is wrong: an option, a path or a combination of them (exit code 2)."""


class ConfigError(UsageError):
    """A configuration key or value is not understood."""


class ImageError(MammosegError):
    """One input image cannot be used. Never stops a batch; ends as a status in `Findings`."""


class DecodeError(ImageError):
    """The file cannot be decoded into pixels (status `failed`)."""


class NotAMammogramError(ImageError):
    """The file was decoded, but what it shows is no mammogram we can analyse (status `rejected`).

    size: (height, width) of the stored image in pixels where the file tells it, else None.
    """

    size: tuple[int, int] | None = None


class NotAnImageError(ImageError):
    """The file is no image at all (text, DICOMDIR, XML): skipped in folders, an error where it was named."""


class DatasetError(MammosegError):
    """A dataset on disk does not have the layout or content its reader expects."""


class DatasetSpecError(DatasetError, UsageError):
    """What names a dataset, `KIND:PATH?option=value`, is wrong: its kind, its path or an option (exit code 2)."""


class BundleError(MammosegError):
    """A weights bundle is missing, incomplete, altered or of an unknown format."""


class TrainingError(MammosegError):
    """Training cannot start or go on (for example a loss that is not finite)."""


class Terminated(KeyboardInterrupt):
    """The process was asked to end by SIGTERM: everything ends as with Ctrl-C, and only what is said differs."""


class EvaluationError(MammosegError):
    """Findings and truth cannot be compared (no common images, or images the bundle was trained on)."""
