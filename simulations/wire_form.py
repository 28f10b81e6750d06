"""A message between two sites of one process: Flower's protobuf of it, and the bytes of its arrays beside that.

Whoever receives has what came through the protobuf and nothing else, as over a network. Only the payloads, Python's
`bytes`, which nobody can change, are handed over as they are: copied into the protobuf and out of it at both ends they
cost a simulation of a small network a twentieth of its time. Sizes are those that the whole protobuf would have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as MessageProto
from google.protobuf.message import Message as ProtoMessage

Place = tuple[str, str]
"""Key of a record, and of an array in it."""


@dataclass(frozen=True)
class WireForm:
    """See the module's text.

    Attributes:
        proto: Flower's protobuf of the message with empty arrays.
        payloads: the arrays' bytes.
        size: bytes of Flower's protobuf with the payloads in it.
    """

    proto: bytes
    payloads: Mapping[Place, bytes]
    size: int

    @classmethod
    def of(cls, message: Message) -> WireForm:
        """The form in which a message crosses."""
        if not message.has_content():
            proto = message_to_proto(message).SerializeToString()
            return cls(proto, {}, len(proto))
        payloads = {
            (name, key): bytes(array.data)
            for name, record in message.content.items()
            if isinstance(record, ArrayRecord)
            for key, array in record.items()
        }
        content = RecordDict({name: _hollow(record) for name, record in message.content.items()})
        hollow = message_to_proto(make_message(message.metadata, content))
        proto = hollow.SerializeToString()
        return cls(proto, payloads, len(proto) + _added(hollow, payloads))

    def message(self) -> Message:
        """The message as it arrives."""
        arrived = message_from_proto(MessageProto.FromString(self.proto))
        for (name, key), payload in self.payloads.items():
            record = arrived.content[name]
            assert isinstance(record, ArrayRecord)
            record[key].data = payload
        return arrived


def _hollow(record: ArrayRecord | ConfigRecord | MetricRecord) -> ArrayRecord | ConfigRecord | MetricRecord:
    """`record` without the bytes of its arrays."""
    if not isinstance(record, ArrayRecord):
        return record
    return ArrayRecord({key: Array(array.dtype, array.shape, array.stype, b"") for key, array in record.items()})


def _added(hollow: MessageProto, payloads: Mapping[Place, bytes]) -> int:
    """Bytes by which a protobuf grows with the payloads, and with the lengths of all that holds them."""
    in_content = 0
    for item in hollow.content.items:
        in_record = 0
        for entry in item.array_record.items:
            size = len(payloads[item.key, entry.key])
            in_array = 1 + _length(size) + size if size else 0  # an empty field is not written
            in_record += _within(entry, _within(entry.value, in_array))
        in_content += _within(item, _within(item.array_record, in_record))
    return _within(hollow.content, in_content)


def _within(part: ProtoMessage, added: int) -> int:
    """Bytes by which what holds `part` grows where that grows by `added`: its length is written before it."""
    size = part.ByteSize()
    return added + _length(size + added) - _length(size)


def _length(number: int) -> int:
    """Bytes of a number in protobuf, which writes seven bits to a byte."""
    return max((number.bit_length() + 6) // 7, 1)
