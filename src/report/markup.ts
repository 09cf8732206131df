/** HTML from template literals: every value is escaped unless it is markup already. */
export interface Markup {
  readonly text: string;
}

type Part = Markup | string | number | readonly Markup[];

export const raw = (text: string): Markup => ({ text });

/** @example html`<b>${'a < b'}</b>`.text === '<b>a &lt; b</b>' */
export function html(strings: TemplateStringsArray, ...parts: readonly Part[]): Markup {
  return raw(strings.reduce((text, string, index) => text + render(parts[index - 1] ?? '') + string));
}

function render(part: Part): string {
  if (typeof part === 'string' || typeof part === 'number') return escapeText(String(part));
  return 'text' in part ? part.text : part.map(one => one.text).join('\n');
}

const entities: Readonly<Record<string, string>> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  '"': '&quot;',
  "'": '&#39;',
};

export const escapeText = (text: string): string => text.replace(/[&<>"']/g, letter => entities[letter] ?? letter);
