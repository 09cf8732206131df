import { errorCodes } from './codes.ts';

/** docs/errors.md: every code with its exit code, meaning and fix. */
export function errorsDocument(): string {
  const sections = Object.entries(errorCodes).map(
    ([code, entry]) => `## ${code}\n\nExit code ${entry.exitCode}. ${entry.summary}\n\n${entry.fix}\n`,
  );
  return `${heading}\n${sections.join('\n')}`;
}

const heading = `# Errors

Every error that rcm-bridge raises on purpose has a \`code\` that stays the same between versions, an \`exitCode\` that the
command line ends with, and mostly a \`hint\`. On the command line an error is one line, and a second one says what to do;
\`-v\` adds the stack and the frames of Python. In a program: \`isRcmBridgeError(error)\`, then \`error.code\`.

This page is generated from src/errors/codes.ts by \`npm run generate\`.
`;
