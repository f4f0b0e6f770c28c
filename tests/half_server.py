"""A server of Milvus that keeps descriptors in float16, or refuses to: Milvus Lite under another name."""

import numpy as np
from milvus_lite.adapter.grpc import server as lite_server
from milvus_lite.adapter.grpc.servicer import MilvusServicer
from pymilvus.grpc_gen import common_pb2, milvus_pb2, schema_pb2

HALF, SINGLE = schema_pb2.DataType.Float16Vector, schema_pb2.DataType.FloatVector


class HalfServer(MilvusServicer):
    """Stores the numbers of halves in float32, and gives halves back.

    Attributes:
        takes_half: whether it does.
        halves: how many descriptors and queries came as halves.
    """

    takes_half, halves = True, 0

    def GetVersion(self, request, context):
        return milvus_pb2.GetVersionResponse(status=common_pb2.Status(), version="2.6.4")

    def CreateCollection(self, request, context):
        schema = schema_pb2.CollectionSchema.FromString(request.schema)
        self._retype(schema, HALF, SINGLE)
        request.schema = schema.SerializeToString()
        return super().CreateCollection(request, context)

    def DescribeCollection(self, request, context):
        answer = super().DescribeCollection(request, context)
        self._retype(answer.schema, SINGLE, HALF)
        return answer

    def _retype(self, schema, found, wanted):
        for field in schema.fields if self.takes_half else ():
            field.data_type = wanted if field.data_type == found else field.data_type

    def Upsert(self, request, context):
        for field in request.fields_data:
            if field.type == HALF:
                values = np.frombuffer(field.vectors.float16_vector, np.float16)
                field.type = SINGLE
                field.vectors.float_vector.data.extend(values.astype(np.float32).tolist())
                HalfServer.halves += len(values) // field.vectors.dim
        return super().Upsert(request, context)

    def Search(self, request, context):
        group = common_pb2.PlaceholderGroup.FromString(request.placeholder_group)
        for asked in group.placeholders:
            if asked.type == common_pb2.PlaceholderType.Float16Vector:
                HalfServer.halves += len(asked.values)
                asked.type = common_pb2.PlaceholderType.FloatVector
                values = [np.frombuffer(value, np.float16).astype(np.float32).tobytes() for value in asked.values]
                del asked.values[:]
                asked.values.extend(values)
        request.placeholder_group = group.SerializeToString()
        return super().Search(request, context)

    def Query(self, request, context):
        answer = super().Query(request, context)
        for field in answer.fields_data:
            if field.type == SINGLE and self.takes_half:
                values = np.array(field.vectors.float_vector.data, np.float16)
                field.type = HALF
                field.vectors.float16_vector = values.tobytes()
        return answer


def start_half_server(monkeypatch, folder, takes_half):
    """Start one in a thread; gives its port, and a function that ends it."""
    monkeypatch.setattr(HalfServer, "takes_half", takes_half)
    monkeypatch.setattr(HalfServer, "halves", 0)
    monkeypatch.setattr(lite_server, "MilvusServicer", HalfServer)
    server, database, port = lite_server.start_server_in_thread(str(folder))

    def end():
        server.stop(grace=0)
        database.close()

    return port, end
