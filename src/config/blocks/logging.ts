import { z } from 'zod';
import { logLevels } from '../../logging/logger.ts';
import { count, key } from './key.ts';

export const logging = z.strictObject({
  everySteps: key(count.default(10), 'Steps between metric lines of a phase', 'mayChange'),
  sinks: key(
    z.array(z.enum(['csv', 'tensorboard', 'wandb', 'mlflow', 'prometheus'])).default(['csv']),
    'Where metrics go besides metrics.ndjson',
    'mayChange',
  ),
  level: key(z.enum(logLevels).default('info'), 'Least level that is logged', 'mayChange'),
});
