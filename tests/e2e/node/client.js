'use strict';
// A client as a team that writes Node would have it: grpc-js, proto-loader, and of ours only protos/.
//
//   node client.js HOST:PORT PROTOS [SERVICE_CONFIG]
//
// Each line of stdin is a call, {rpc, request, headers}; each line of stdout its answer, {response} or
// {refused}. Messages are in the JSON form of proto3.
const readline = require('node:readline');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');
const protobuf = require('protobufjs');

const DEADLINE_MS = 30000;
const [target, protos, serviceConfig] = process.argv.slice(2);
const files = ['jobs/v1/jobs.proto', 'jobs/v1/errors.proto'];
const definition = loader.loadSync(files, { includeDirs: [protos], longs: String, enums: String });
const { JobsService } = grpc.loadPackageDefinition(definition).jobs.v1;

// What the trailer grpc-status-details-bin holds.
const { root: rpcTypes } = protobuf.parse(`
  syntax = "proto3";
  package google.rpc;
  message Detail { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Detail details = 3; }
  message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }
  message BadRequest { repeated FieldViolation field_violations = 1; }
  message FieldViolation { string field = 1; string description = 2; }
`);
const rpcType = (name) => rpcTypes.lookupType(`google.rpc.${name}`);

const STRUCTS = new Set(['runParameters', 'outputSummary', 'details']);
const isTime = (key) => /Time(From|To)?$/.test(key);

// proto-loader leaves Struct and Timestamp as the messages that they are.
function toStruct(object) {
  return { fields: Object.fromEntries(Object.entries(object).map(([key, item]) => [key, toValue(item)])) };
}

function toValue(item) {
  if (item === null) return { nullValue: 'NULL_VALUE' };
  if (Array.isArray(item)) return { listValue: { values: item.map(toValue) } };
  if (typeof item === 'object') return { structValue: toStruct(item) };
  return { [`${typeof item === 'boolean' ? 'bool' : typeof item}Value`]: item };
}

function fromStruct(struct) {
  return Object.fromEntries(Object.entries(struct.fields ?? {}).map(([key, item]) => [key, fromValue(item)]));
}

function fromValue(value) {
  const [kind] = Object.keys(value);
  if (kind === 'nullValue') return null;
  if (kind === 'listValue') return (value.listValue.values ?? []).map(fromValue);
  return kind === 'structValue' ? fromStruct(value.structValue) : value[kind];
}

function toTimestamp(text) {
  const [, whole, fraction = ''] = /^([^.Z]+)(?:\.(\d+))?Z$/.exec(text);
  return { seconds: String(Date.parse(`${whole}Z`) / 1000), nanos: Number(fraction.padEnd(9, '0')) };
}

function fromTimestamp({ seconds = '0', nanos = 0 }) {
  const whole = new Date(Number(seconds) * 1000).toISOString().slice(0, 19);
  const fraction = String(nanos).padStart(9, '0').replace(/(000){1,3}$/, '');
  return fraction ? `${whole}.${fraction}Z` : `${whole}Z`;
}

function converted(message, struct, time) {
  if (Array.isArray(message)) return message.map((item) => converted(item, struct, time));
  if (message === null || typeof message !== 'object') return message;
  const entries = Object.entries(message).map(([key, item]) => {
    if (STRUCTS.has(key)) return [key, struct(item)];
    return [key, isTime(key) ? time(item) : converted(item, struct, time)];
  });
  return Object.fromEntries(entries);
}

function refusal(error) {
  const [trailer] = error.metadata.get('grpc-status-details-bin');
  const details = trailer ? rpcType('Status').decode(trailer).details : [];
  const decoded = (name) =>
    details
      .filter((detail) => detail.typeUrl === `type.googleapis.com/google.rpc.${name}`)
      .map((detail) => rpcType(name).toObject(rpcType(name).decode(detail.value)));
  const violations = decoded('BadRequest').flatMap((detail) => detail.fieldViolations);
  return {
    code: grpc.status[error.code],
    message: error.details,
    infos: decoded('ErrorInfo'),
    violations: Object.fromEntries(violations.map(({ field, description }) => [field, description])),
  };
}

function answer(client, { rpc, request, headers }) {
  const metadata = new grpc.Metadata();
  for (const [key, text] of Object.entries(headers)) metadata.set(key, text);
  const message = converted(request, toStruct, toTimestamp);
  return new Promise((resolve) => {
    client[rpc](message, metadata, { deadline: Date.now() + DEADLINE_MS }, (error, response) =>
      resolve(error ? { refused: refusal(error) } : { response: converted(response, fromStruct, fromTimestamp) }),
    );
  });
}

async function main() {
  const options = serviceConfig ? { 'grpc.service_config': serviceConfig } : {};
  const client = new JobsService(target, grpc.credentials.createInsecure(), options);
  for await (const line of readline.createInterface({ input: process.stdin })) {
    process.stdout.write(`${JSON.stringify(await answer(client, JSON.parse(line)))}\n`);
  }
  client.close();
}

main();
