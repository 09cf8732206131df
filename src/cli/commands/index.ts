import type { Command, CommandGroup } from '../command.ts';
import { config } from './config.ts';
import { data } from './data.ts';
import { distill } from './distill.ts';
import { doctor } from './doctor.ts';
import { env } from './env.ts';
import { plan } from './plan.ts';
import { pretrain } from './pretrain.ts';
import { repl } from './repl.ts';
import { report } from './report.ts';
import { resume } from './resume.ts';
import { runs } from './runs.ts';
import { sample } from './sample.ts';
import { weights } from './weights.ts';

/** What `rcm-bridge --help` lists, in this order. */
export const commands: readonly (Command | CommandGroup)[] = [
  distill,
  pretrain,
  resume,
  sample,
  report,
  plan,
  runs,
  config,
  data,
  weights,
  doctor,
  env,
  repl,
];
