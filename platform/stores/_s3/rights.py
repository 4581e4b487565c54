"""The rights (IAM actions) that each call needs, to be named when one is missing; docs/stores.md prints them as policies."""

_RIGHTS: dict[str, tuple[str, ...]] = {
    "put_object": ("s3:PutObject",),
    "create_multipart_upload": ("s3:PutObject",),
    "upload_part": ("s3:PutObject",),
    "complete_multipart_upload": ("s3:PutObject",),
    "abort_multipart_upload": ("s3:AbortMultipartUpload",),
    "list_multipart_uploads": ("s3:ListBucketMultipartUploads",),
    "get_object": ("s3:GetObject", "s3:ListBucket"),
    "head_object": ("s3:GetObject", "s3:ListBucket"),
    "head_bucket": ("s3:ListBucket",),
    "list_objects_v2": ("s3:ListBucket",),
    "list_object_versions": ("s3:ListBucketVersions",),
    "delete_object": ("s3:DeleteObject",),
    "delete_objects": ("s3:DeleteObject",),
    "delete_version": ("s3:DeleteObjectVersion",),
    "put_locked": ("s3:PutObject", "s3:PutObjectRetention"),
    "put_object_retention": ("s3:PutObjectRetention",),
    "get_object_retention": ("s3:GetObjectRetention",),
    "get_object_lock_configuration": ("s3:GetBucketObjectLockConfiguration",),
    "get_bucket_versioning": ("s3:GetBucketVersioning",),
}


def rights_for(operation: str) -> tuple[str, ...]:
    """The IAM actions of a call; empty for one that is not known."""
    return _RIGHTS.get(operation, ())
