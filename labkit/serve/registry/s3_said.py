"""What an S3 store answers when it does not do what was asked, as the registry's own errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from labkit.serve.registry.errors import Interrupted, Lost, Missing, Refused, Unfit

GONE = {"NoSuchKey", "NoSuchUpload", "404", "NotFound"}
UNMET = {"PreconditionFailed", "412"}
BUSY = {"ConditionalRequestConflict", "OperationAborted"}
LATER = {"InternalError", "SlowDown", "ServiceUnavailable", "RequestTimeout", "RequestTimeTooSkewed", "Throttling"}
WHO = "credentials come from boto3's own variables and files (AWS_ACCESS_KEY_ID, AWS_PROFILE, ~/.aws/credentials)"


class Busy(Lost):
    """The store was in the middle of another write to the same key; the same request may pass in a moment."""


@contextmanager
def said(uri: str, what: str) -> Iterator[None]:
    """Turn boto3's errors into ours.

    Args:
        uri: the store.
        what: the key, or what else was asked for.
    """
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

    try:
        yield
    except ClientError as error:
        raise _answered(error, uri, what) from error
    except (HTTPClientError, *_broken()) as error:
        raise Interrupted(
            f"{uri} cannot be reached any more ({_line(error)}); what is finished is kept: run the same again"
        ) from error
    except BotoCoreError as error:
        raise Refused(f"{uri} cannot be used: {_line(error)}. {WHO}; the endpoint from AWS_ENDPOINT_URL") from error


def _broken() -> tuple[type[Exception], ...]:
    from botocore.exceptions import EventStreamError, IncompleteReadError, ResponseStreamingError

    return IncompleteReadError, ResponseStreamingError, EventStreamError, ConnectionError, TimeoutError


def _answered(error, uri: str, what: str) -> Exception:
    answer = error.response.get("Error", {})
    code, status = str(answer.get("Code", "")), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    words = f"{code}: {answer.get('Message', '')}".strip(": ")
    if code == "NoSuchBucket":
        return Missing(f"there is no bucket for {uri}; make it with your store's own tool, or give another address")
    if code in GONE:
        return Missing(f"there is no {what} in {uri}")
    if code in BUSY:
        return Busy(f"{what} in {uri} is being written by somebody else")
    if code in UNMET:
        return Lost(f"{what} in {uri} was changed by somebody else")
    if code == "NotImplemented" or status == 501:
        return Unfit(f"{uri} cannot do what a registry needs ({what}: {words}); use another store")
    if status in (401, 403):
        return Refused(f"{uri} refuses {what} ({words}); {WHO}")
    if code in LATER or status >= 500:
        return Interrupted(f"{uri} fails at {what} ({words}); what is finished is kept: run the same again")
    return Refused(f"{uri} refuses {what} ({words})")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
