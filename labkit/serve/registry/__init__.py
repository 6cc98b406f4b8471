"""The registry: versions of a model in an S3 store or in a folder. No torch and no boto3 is loaded here.

A version is a manifest (`versions/v3.json`) that names its files by SHA-256; the bytes lie beside it under their hash
(`blobs/`), sent before the manifest is written, so that a version is whole or not there. An alias (`aliases/prod.json`)
names one version and keeps what it named before.
"""

from labkit.serve.registry.errors import Damaged, Interrupted, Lost, Missing, Moved, Refused, Unfit
from labkit.serve.registry.home import default_cache, default_store
from labkit.serve.registry.manifest import Shard, Version
from labkit.serve.registry.names import split
from labkit.serve.registry.opening import open_registry
from labkit.serve.registry.publish import content
from labkit.serve.registry.registry import Registry
from labkit.serve.registry.small_disk import SmallDisk

__all__ = [
    "Damaged",
    "Interrupted",
    "Lost",
    "Missing",
    "Moved",
    "Refused",
    "Registry",
    "Shard",
    "SmallDisk",
    "Unfit",
    "Version",
    "content",
    "default_cache",
    "default_store",
    "open_registry",
    "split",
]
