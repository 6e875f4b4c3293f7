"""What the service answers when it cannot do what it is asked."""

from __future__ import annotations


class ApiError(Exception):
    """status: of HTTP. code: a short word for programs. message: a sentence for people, without anything of the patient."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message

    def __reduce__(self) -> tuple[type[ApiError], tuple[int, str, str]]:
        return ApiError, (self.status, self.code, self.message)


def not_found(what: str) -> ApiError:
    """404 for something that is not there."""
    return ApiError(404, "not_found", f"there is no such {what} here")
