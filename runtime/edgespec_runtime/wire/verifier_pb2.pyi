from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Features(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NO_FEATURES: _ClassVar[Features]
    FLOAT16: _ClassVar[Features]
    INT8: _ClassVar[Features]
NO_FEATURES: Features
FLOAT16: Features
INT8: Features

class InfoRequest(_message.Message):
    __slots__ = ("protocol",)
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    def __init__(self, protocol: _Optional[int] = ...) -> None: ...

class InfoReply(_message.Message):
    __slots__ = ("protocol", "version", "fingerprints", "limits", "verify", "feature_width", "image_formats", "embeddings")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINTS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    VERIFY_FIELD_NUMBER: _ClassVar[int]
    FEATURE_WIDTH_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FORMATS_FIELD_NUMBER: _ClassVar[int]
    EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    version: str
    fingerprints: Fingerprints
    limits: Limits
    verify: Curve
    feature_width: int
    image_formats: _containers.RepeatedScalarFieldContainer[str]
    embeddings: bool
    def __init__(self, protocol: _Optional[int] = ..., version: _Optional[str] = ..., fingerprints: _Optional[_Union[Fingerprints, _Mapping]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., verify: _Optional[_Union[Curve, _Mapping]] = ..., feature_width: _Optional[int] = ..., image_formats: _Optional[_Iterable[str]] = ..., embeddings: _Optional[bool] = ...) -> None: ...

class Fingerprints(_message.Message):
    __slots__ = ("target", "tokenizer", "preprocess")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FIELD_NUMBER: _ClassVar[int]
    PREPROCESS_FIELD_NUMBER: _ClassVar[int]
    target: bytes
    tokenizer: bytes
    preprocess: bytes
    def __init__(self, target: _Optional[bytes] = ..., tokenizer: _Optional[bytes] = ..., preprocess: _Optional[bytes] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("vocab", "context", "nodes", "depth", "images", "image_bytes", "image_pixels", "message_bytes")
    VOCAB_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    IMAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    IMAGE_PIXELS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    vocab: int
    context: int
    nodes: int
    depth: int
    images: int
    image_bytes: int
    image_pixels: int
    message_bytes: int
    def __init__(self, vocab: _Optional[int] = ..., context: _Optional[int] = ..., nodes: _Optional[int] = ..., depth: _Optional[int] = ..., images: _Optional[int] = ..., image_bytes: _Optional[int] = ..., image_pixels: _Optional[int] = ..., message_bytes: _Optional[int] = ...) -> None: ...

class Curve(_message.Message):
    __slots__ = ("sizes", "median_ms")
    SIZES_FIELD_NUMBER: _ClassVar[int]
    MEDIAN_MS_FIELD_NUMBER: _ClassVar[int]
    sizes: _containers.RepeatedScalarFieldContainer[int]
    median_ms: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, sizes: _Optional[_Iterable[int]] = ..., median_ms: _Optional[_Iterable[float]] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int
    def __init__(self, temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., seed: _Optional[int] = ...) -> None: ...

class Picture(_message.Message):
    __slots__ = ("file", "sha256", "embeddings")
    FILE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    file: bytes
    sha256: bytes
    embeddings: Embeddings
    def __init__(self, file: _Optional[bytes] = ..., sha256: _Optional[bytes] = ..., embeddings: _Optional[_Union[Embeddings, _Mapping]] = ...) -> None: ...

class Embeddings(_message.Message):
    __slots__ = ("rows", "width", "data")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    rows: int
    width: int
    data: bytes
    def __init__(self, rows: _Optional[int] = ..., width: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class OpenRequest(_message.Message):
    __slots__ = ("session_id", "epoch", "fingerprints", "prompt_ids", "pictures", "sampling", "accepted_ids", "max_new_tokens", "max_nodes", "features", "want_named")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINTS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_IDS_FIELD_NUMBER: _ClassVar[int]
    PICTURES_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_IDS_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_NODES_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    WANT_NAMED_FIELD_NUMBER: _ClassVar[int]
    session_id: bytes
    epoch: int
    fingerprints: Fingerprints
    prompt_ids: _containers.RepeatedScalarFieldContainer[int]
    pictures: _containers.RepeatedCompositeFieldContainer[Picture]
    sampling: Sampling
    accepted_ids: _containers.RepeatedScalarFieldContainer[int]
    max_new_tokens: int
    max_nodes: int
    features: Features
    want_named: bool
    def __init__(self, session_id: _Optional[bytes] = ..., epoch: _Optional[int] = ..., fingerprints: _Optional[_Union[Fingerprints, _Mapping]] = ..., prompt_ids: _Optional[_Iterable[int]] = ..., pictures: _Optional[_Iterable[_Union[Picture, _Mapping]]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., accepted_ids: _Optional[_Iterable[int]] = ..., max_new_tokens: _Optional[int] = ..., max_nodes: _Optional[int] = ..., features: _Optional[_Union[Features, str]] = ..., want_named: _Optional[bool] = ...) -> None: ...

class OpenReply(_message.Message):
    __slots__ = ("epoch", "committed_len", "prefix_hash", "first", "lease_ms", "reused_rows", "features", "queue_us", "compute_us", "replayed")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_LEN_FIELD_NUMBER: _ClassVar[int]
    PREFIX_HASH_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    REUSED_ROWS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_US_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    committed_len: int
    prefix_hash: int
    first: int
    lease_ms: int
    reused_rows: int
    features: bytes
    queue_us: int
    compute_us: int
    replayed: bool
    def __init__(self, epoch: _Optional[int] = ..., committed_len: _Optional[int] = ..., prefix_hash: _Optional[int] = ..., first: _Optional[int] = ..., lease_ms: _Optional[int] = ..., reused_rows: _Optional[int] = ..., features: _Optional[bytes] = ..., queue_us: _Optional[int] = ..., compute_us: _Optional[int] = ..., replayed: _Optional[bool] = ...) -> None: ...

class Tree(_message.Message):
    __slots__ = ("token_ids", "parents")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    PARENTS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    parents: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., parents: _Optional[_Iterable[int]] = ...) -> None: ...

class VerifyRequest(_message.Message):
    __slots__ = ("session_id", "epoch", "round", "committed_len", "prefix_hash", "tree")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_LEN_FIELD_NUMBER: _ClassVar[int]
    PREFIX_HASH_FIELD_NUMBER: _ClassVar[int]
    TREE_FIELD_NUMBER: _ClassVar[int]
    session_id: bytes
    epoch: int
    round: int
    committed_len: int
    prefix_hash: int
    tree: Tree
    def __init__(self, session_id: _Optional[bytes] = ..., epoch: _Optional[int] = ..., round: _Optional[int] = ..., committed_len: _Optional[int] = ..., prefix_hash: _Optional[int] = ..., tree: _Optional[_Union[Tree, _Mapping]] = ...) -> None: ...

class VerifyReply(_message.Message):
    __slots__ = ("round", "path", "bonus", "committed_len", "prefix_hash", "named", "features", "queue_us", "compute_us", "replayed")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    BONUS_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_LEN_FIELD_NUMBER: _ClassVar[int]
    PREFIX_HASH_FIELD_NUMBER: _ClassVar[int]
    NAMED_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_US_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_FIELD_NUMBER: _ClassVar[int]
    round: int
    path: _containers.RepeatedScalarFieldContainer[int]
    bonus: int
    committed_len: int
    prefix_hash: int
    named: _containers.RepeatedScalarFieldContainer[int]
    features: bytes
    queue_us: int
    compute_us: int
    replayed: bool
    def __init__(self, round: _Optional[int] = ..., path: _Optional[_Iterable[int]] = ..., bonus: _Optional[int] = ..., committed_len: _Optional[int] = ..., prefix_hash: _Optional[int] = ..., named: _Optional[_Iterable[int]] = ..., features: _Optional[bytes] = ..., queue_us: _Optional[int] = ..., compute_us: _Optional[int] = ..., replayed: _Optional[bool] = ...) -> None: ...

class ContinueRequest(_message.Message):
    __slots__ = ("session_id", "epoch", "round", "committed_len", "prefix_hash", "max_tokens", "stop_ids")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_LEN_FIELD_NUMBER: _ClassVar[int]
    PREFIX_HASH_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_IDS_FIELD_NUMBER: _ClassVar[int]
    session_id: bytes
    epoch: int
    round: int
    committed_len: int
    prefix_hash: int
    max_tokens: int
    stop_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, session_id: _Optional[bytes] = ..., epoch: _Optional[int] = ..., round: _Optional[int] = ..., committed_len: _Optional[int] = ..., prefix_hash: _Optional[int] = ..., max_tokens: _Optional[int] = ..., stop_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class CloseRequest(_message.Message):
    __slots__ = ("session_id", "epoch")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    session_id: bytes
    epoch: int
    def __init__(self, session_id: _Optional[bytes] = ..., epoch: _Optional[int] = ...) -> None: ...

class CloseReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
