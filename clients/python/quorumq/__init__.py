"""The asyncio client library of quorumq.

async with await quorumq.connect("a:9000,b:9000,c:9000") as client:
    async with client.producer("orders") as producer:
        metadata = await producer.send_and_wait(b"...", key=b"customer 7")
    async for record in client.reader("orders", follow=False):
        print(record.partition, record.offset, record.value)
"""

from quorumq.admin import Admin as Admin
from quorumq.batching import RecordFuture as RecordFuture
from quorumq.client import Client as Client
from quorumq.client import connect as connect
from quorumq.errors import QuorumqError as QuorumqError
from quorumq.opening import OpenedPartition as OpenedPartition
from quorumq.producer import Producer as Producer
from quorumq.reader import Reader as Reader
from quorumq.reader import Start as Start
from quorumq.reader import Time as Time
from quorumq.records import Header as Header
from quorumq.records import ReadBatch as ReadBatch
from quorumq.records import Record as Record
from quorumq.records import RecordMetadata as RecordMetadata
