/** A resolved config for people: every `auto` replaced by what it became. */
import { join } from 'node:path';
import { type Document, isScalar, parseDocument, stringify } from 'yaml';
import { networkNamed } from '../models/registry.ts';
import { autoBranches } from './branches.ts';
import { autoContextKind, processesOf } from './parallel.ts';
import type { RcmConfig } from './types.ts';

export interface PrintedConfig {
  /** The config without `auto`. */
  readonly config: Readonly<Record<string, unknown>>;
  /** Paths of the keys that were `auto`. */
  readonly auto: readonly string[];
}

/** What this version makes of each `auto`; undefined where the key has another value. */
export function describeAuto(config: RcmConfig): PrintedConfig {
  const { model, schedule } = config;
  const { family } = networkNamed(model.name);
  const became: Readonly<Record<string, unknown>> = {
    'model.vae': model.path === null ? null : join(model.path, family.encoderFiles.VAE[0]),
    'model.textEncoder': family.textEncoder.name,
    'teacher.branches': autoBranches(config),
    // On a CPU a process's whole share goes through at once.
    'schedule.microBatchSize': schedule.batchSize / processesOf(config).data,
    'compute.device': 'cpu',
    'compute.launcher': config.compute.nodes > 1 ? 'torchrun' : 'local',
    'compute.parallel.contextKind': autoContextKind(config),
    'compute.attention': 'eager',
  };
  const auto: string[] = [];
  const replaced = (value: unknown, path: string): unknown => {
    if (value === 'auto' && path in became) {
      auto.push(path);
      return became[path];
    }
    if (typeof value !== 'object' || value === null || Array.isArray(value)) return value;
    const inner = (key: string): string => (path === '' ? key : `${path}.${key}`);
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, replaced(item, inner(key))]));
  };
  return { config: replaced(config, '') as Readonly<Record<string, unknown>>, auto };
}

/** As YAML; keys that were `auto` say so. */
export function printConfig(config: Readonly<Record<string, unknown>>, auto: readonly string[]): string {
  const document: Document = parseDocument(stringify(config));
  for (const path of auto) {
    const node = document.getIn(path.split('.'), true);
    if (isScalar(node)) node.comment = ' was auto';
  }
  return document.toString({ lineWidth: 110 }).trimEnd();
}
