#!/usr/bin/env python3
"""Write the schemas of in-toto statements and SLSA provenance v1, as their project publishes them, to one
file.

    pip install in-toto-attestation==0.9.3
    python tests/slsa/descriptors.py tests/fixtures/slsa_v1.json

With `--check FILE` the library itself reads and validates a statement instead.
"""

import sys

from google.protobuf import json_format, struct_pb2, timestamp_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import resource_descriptor_pb2, statement_pb2
from in_toto_attestation.v1.statement import Statement

if sys.argv[1] == "--check":
    with open(sys.argv[2]) as file:
        text = file.read()
    statement = json_format.Parse(text, statement_pb2.Statement())
    Statement.copy_from_pb(statement).validate()
    json_format.Parse(json_format.MessageToJson(statement.predicate), provenance_pb2.Provenance())
    print("valid")
else:
    files = FileDescriptorSet()
    for module in (struct_pb2, timestamp_pb2, resource_descriptor_pb2, statement_pb2, provenance_pb2):
        module.DESCRIPTOR.CopyToProto(files.file.add())
    with open(sys.argv[1], "w") as file:
        file.write(json_format.MessageToJson(files, sort_keys=True, indent=1) + "\n")
