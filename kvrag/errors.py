"""The errors kvrag raises.

    KVRagError
    ├── AdapterError             an adapter file that cannot be read or belongs to another model
    ├── DataError                questions or templates that cannot be read
    ├── EngineError              the engine is closed, or its worker failed
    │   └── PoolError                a packet that does not belong into the device's pool
    │       └── PoolFullError            packets that have no room there
    ├── ModelError               a model or tokenizer that cannot be loaded
    │   └── UnsupportedModelError    it loads, but its packets cannot be moved exactly
    ├── PromptError              a prompt or a chunk that cannot be processed
    │   └── PromptTooLongError       it does not fit into the model's context window
    ├── SettingsError            a setting that is unknown or out of range
    ├── StoreError               a packet store that cannot be opened or written
    │   └── CorruptPacketError       a packet file whose bytes are not what they claim to be
    └── TrainingError            a training run that cannot begin, go on or be kept

Every message says what was expected, what was found and what to do.
"""

__all__ = [
    "AdapterError",
    "CorruptPacketError",
    "DataError",
    "EngineError",
    "KVRagError",
    "ModelError",
    "PoolError",
    "PoolFullError",
    "PromptError",
    "PromptTooLongError",
    "SettingsError",
    "StoreError",
    "TrainingError",
    "UnsupportedModelError",
]


class KVRagError(Exception):
    """Base class of every error that kvrag raises on purpose."""


class AdapterError(KVRagError):
    """An adapter file cannot be read, or it was trained for another model."""


class DataError(KVRagError):
    """Questions, passages or prompt templates cannot be read, or there are none."""


class EngineError(KVRagError):
    """The engine is closed, or its worker failed."""


class PoolError(EngineError):
    """A packet does not belong into the pool, or the pool's books are wrong."""


class PoolFullError(PoolError):
    """Packets of `needed` bytes do not fit into `capacity`, of which other holds have `pinned`."""

    def __init__(self, message: str, needed: int, capacity: int, pinned: int) -> None:
        super().__init__(message)
        self.needed, self.capacity, self.pinned = needed, capacity, pinned


class ModelError(KVRagError):
    """A model or tokenizer cannot be loaded."""


class UnsupportedModelError(ModelError):
    """The model loads, but its packets cannot be moved to another position exactly."""


class PromptError(KVRagError):
    """A prompt or a chunk cannot be processed."""


class PromptTooLongError(PromptError):
    """A prompt or a chunk does not fit into the model's context window."""


class SettingsError(KVRagError):
    """A setting is unknown or out of range."""


class StoreError(KVRagError):
    """A packet store cannot be opened or written."""


class CorruptPacketError(StoreError):
    """A packet file's bytes are not what they claim to be."""


class TrainingError(KVRagError):
    """A training run cannot begin or go on, or its result cannot be written; what was kept before is still there."""
