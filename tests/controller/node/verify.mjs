// Reads one question as JSON from standard input, and answers it as JSON: whether Sigstore's own verifier takes a bundle.
import { bundleFromJSON } from '@sigstore/bundle';
import { TrustedRoot } from '@sigstore/protobuf-specs';
import { Verifier, toSignedEntity, toTrustMaterial } from '@sigstore/verify';
import { createPublicKey } from 'node:crypto';
import { readFileSync } from 'node:fs';

const asked = JSON.parse(readFileSync(0, 'utf8'));

function judge() {
  const bundle = bundleFromJSON(asked.bundle);
  const artifact = asked.artifact === null ? undefined : Buffer.from(asked.artifact, 'base64');
  const policy = asked.identity ? { subjectAlternativeName: asked.identity, extensions: { issuer: asked.issuer } } : undefined;
  const found = asked.key
    ? () => ({ publicKey: createPublicKey(asked.key), validFor: () => true })
    : {};
  const root = TrustedRoot.fromJSON(asked.root);
  // A bundle made with a key has no certificate, and ours are in no log.
  const needs = asked.key ? { ctlogThreshold: 0, tlogThreshold: 0, timestampThreshold: 0 } : {};
  new Verifier(toTrustMaterial(root, found), needs).verify(toSignedEntity(bundle, artifact), policy);
}

try {
  judge();
  console.log(JSON.stringify({ refused: '' }));
} catch (error) {
  console.log(JSON.stringify({ refused: `${error.code ?? error.name}: ${error.message}` }));
}
