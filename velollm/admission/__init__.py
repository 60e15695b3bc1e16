"""Who may ask for what, and how much: keys, their limits, and how urgent a request is."""

from velollm.admission.keyfile import KeyFile, add_key, list_keys, read_keys, revoke_key
from velollm.admission.keys import CURRENT, Key, KeyRing, hash_key, new_key
from velollm.admission.layer import AdmissionLayer
from velollm.admission.rates import Bucket, Meter
from velollm.admission.urgency import read_urgency

__all__ = [
    "CURRENT",
    "AdmissionLayer",
    "Bucket",
    "Key",
    "KeyFile",
    "KeyRing",
    "Meter",
    "add_key",
    "hash_key",
    "list_keys",
    "new_key",
    "read_keys",
    "read_urgency",
    "revoke_key",
]
