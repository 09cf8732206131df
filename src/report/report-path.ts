import { join } from 'node:path';

/** Where a run's report lies, relative to its directory. */
export const reportPath = join('report', 'index.html');
