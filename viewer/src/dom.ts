/** Elements from code: no markup in strings, so that nothing from a file name can become markup. */

type Attributes = Record<string, string | number | boolean | null | undefined | ((event: never) => void)>;

/** An element with attributes (`onclick` and the like are listeners; null, undefined and false leave one out) and children. */
export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Attributes = {},
  ...children: (Node | string | null)[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === 'function') element.addEventListener(name.slice(2), value as EventListener);
    else if (value === true) element.setAttribute(name, '');
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, String(value));
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** The element with an id that index.html has. */
export function byId<T extends HTMLElement = HTMLElement>(id: string): T {
  const found = document.getElementById(id);
  if (!found) throw new Error(`index.html has no #${id}`);
  return found as T;
}

/** Puts new children into an element; a focused one of the same `data-key` keeps the focus. */
export function fill(element: HTMLElement, ...children: (Node | string | null)[]): void {
  const focused = document.activeElement;
  const key = element.contains(focused) ? focused?.getAttribute('data-key') : null;
  element.replaceChildren(...children.filter((child) => child !== null));
  if (key) element.querySelector<HTMLElement>(`[data-key="${CSS.escape(key)}"]`)?.focus({ preventScroll: true });
}

/** Says something to those who listen to the page instead of looking at it. */
export function announce(text: string): void {
  byId('announcer').textContent = text;
}
