"""Every RPC of the public contract, in one table."""

from __future__ import annotations

from quorumq.channel import Kind, M, Method, N, method
from quorumq.v1 import admin_pb2 as admin
from quorumq.v1 import messaging_pb2 as messaging

_MESSAGING = "/quorumq.v1.MessagingService/"
_ADMIN = "/quorumq.v1.AdminService/"


def _repeatable(name: str, request: type[M], response: type[N]) -> Method[M, N]:
    return method(_ADMIN + name, Kind.UNARY, request, response, repeatable=True)


def _once(name: str, request: type[M], response: type[N]) -> Method[M, N]:
    return method(_ADMIN + name, Kind.UNARY, request, response)


# Opening a name again only raises its epoch; a nameless one only uses up an id.
OPEN_PRODUCER = method(
    _MESSAGING + "OpenProducer",
    Kind.UNARY,
    messaging.OpenProducerRequest,
    messaging.OpenProducerResponse,
    repeatable=True,
)
PRODUCE = method(
    _MESSAGING + "Produce", Kind.UNARY, messaging.ProduceRequest, messaging.ProduceResponse
)
PRODUCE_STREAM = method(
    _MESSAGING + "ProduceStream",
    Kind.BIDI_STREAM,
    messaging.ProduceStreamRequest,
    messaging.ProduceStreamResponse,
)
READ = method(
    _MESSAGING + "Read", Kind.SERVER_STREAM, messaging.ReadRequest, messaging.ReadResponse
)
COMMIT = method(
    _MESSAGING + "Commit",
    Kind.UNARY,
    messaging.CommitRequest,
    messaging.CommitResponse,
    repeatable=True,
)
GET_POSITIONS = method(
    _MESSAGING + "GetPositions",
    Kind.UNARY,
    messaging.GetPositionsRequest,
    messaging.GetPositionsResponse,
    repeatable=True,
)
CONSUME = method(
    _MESSAGING + "Consume",
    Kind.BIDI_STREAM,
    messaging.ConsumeRequest,
    messaging.ConsumeResponse,
)
PULL = method(
    _MESSAGING + "Pull",
    Kind.UNARY,
    messaging.PullRequest,
    messaging.PullResponse,
    repeatable=True,
)
ACK = method(
    _MESSAGING + "Ack", Kind.UNARY, messaging.AckRequest, messaging.AckResponse, repeatable=True
)

CREATE_TOPIC = _repeatable("CreateTopic", admin.CreateTopicRequest, admin.CreateTopicResponse)
ALTER_TOPIC = _repeatable("AlterTopic", admin.AlterTopicRequest, admin.AlterTopicResponse)
DELETE_TOPIC = _once("DeleteTopic", admin.DeleteTopicRequest, admin.DeleteTopicResponse)
DESCRIBE_TOPIC = _repeatable(
    "DescribeTopic", admin.DescribeTopicRequest, admin.DescribeTopicResponse
)
LIST_TOPICS = _repeatable("ListTopics", admin.ListTopicsRequest, admin.ListTopicsResponse)
CREATE_SUBSCRIPTION = _repeatable(
    "CreateSubscription", admin.CreateSubscriptionRequest, admin.CreateSubscriptionResponse
)
ALTER_SUBSCRIPTION = _repeatable(
    "AlterSubscription", admin.AlterSubscriptionRequest, admin.AlterSubscriptionResponse
)
DELETE_SUBSCRIPTION = _once(
    "DeleteSubscription", admin.DeleteSubscriptionRequest, admin.DeleteSubscriptionResponse
)
DESCRIBE_SUBSCRIPTION = _repeatable(
    "DescribeSubscription", admin.DescribeSubscriptionRequest, admin.DescribeSubscriptionResponse
)
LIST_SUBSCRIPTIONS = _repeatable(
    "ListSubscriptions", admin.ListSubscriptionsRequest, admin.ListSubscriptionsResponse
)
GET_METADATA = _repeatable("GetMetadata", admin.GetMetadataRequest, admin.GetMetadataResponse)
LIST_OFFSETS = _repeatable("ListOffsets", admin.ListOffsetsRequest, admin.ListOffsetsResponse)
GET_RECORD = _repeatable("GetRecord", admin.GetRecordRequest, admin.GetRecordResponse)
LIST_PRODUCERS = _repeatable(
    "ListProducers", admin.ListProducersRequest, admin.ListProducersResponse
)
LIST_LEASES = _repeatable("ListLeases", admin.ListLeasesRequest, admin.ListLeasesResponse)
LIST_SESSIONS = _repeatable("ListSessions", admin.ListSessionsRequest, admin.ListSessionsResponse)
KICK_SESSION = _once("KickSession", admin.KickSessionRequest, admin.KickSessionResponse)
SEEK = _once("Seek", admin.SeekRequest, admin.SeekResponse)
PURGE = _once("Purge", admin.PurgeRequest, admin.PurgeResponse)
REDRIVE = _once("Redrive", admin.RedriveRequest, admin.RedriveResponse)
GET_CLUSTER = _repeatable("GetCluster", admin.GetClusterRequest, admin.GetClusterResponse)
ADD_NODE = _once("AddNode", admin.AddNodeRequest, admin.AddNodeResponse)
DRAIN_NODE = _once("DrainNode", admin.DrainNodeRequest, admin.DrainNodeResponse)
REMOVE_NODE = _once("RemoveNode", admin.RemoveNodeRequest, admin.RemoveNodeResponse)
MOVE_REPLICA = _once("MoveReplica", admin.MoveReplicaRequest, admin.MoveReplicaResponse)
TRANSFER_LEADER = _repeatable(
    "TransferLeader", admin.TransferLeaderRequest, admin.TransferLeaderResponse
)
GET_OPERATION = _repeatable("GetOperation", admin.GetOperationRequest, admin.GetOperationResponse)
LIST_OPERATIONS = _repeatable(
    "ListOperations", admin.ListOperationsRequest, admin.ListOperationsResponse
)
