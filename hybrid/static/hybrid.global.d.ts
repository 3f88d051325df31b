import type { connect } from "./hybrid.js";

declare global {
  /** What `hybrid.global.js` makes: the client for pages without modules. */
  const Hybrid: { readonly connect: typeof connect };
  interface Window {
    readonly Hybrid: { readonly connect: typeof connect };
  }
}
