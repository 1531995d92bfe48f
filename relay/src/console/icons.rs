//! Shapes of the states: a shape and a word, and colour only repeats them.

use maud::{Markup, PreEscaped, html};

/// Drawn once a page; `use` refers to it.
const SHAPES: &str = r##"<symbol id="i-open" viewBox="0 0 16 16"><circle cx="8" cy="8" r="5"/></symbol>
<symbol id="i-run" viewBox="0 0 16 16"><path d="M4.5 3v10L13 8z" fill="currentColor"/></symbol>
<symbol id="i-wait" viewBox="0 0 16 16"><path d="M1.5 8h3M6.5 8h3M11.5 8h3" stroke-width="2.5"/></symbol>
<symbol id="i-ok" viewBox="0 0 16 16"><path d="m2.5 8.5 4 4 7-9"/></symbol>
<symbol id="i-bad" viewBox="0 0 16 16"><path d="m3 3 10 10M13 3 3 13" stroke-width="2.2"/></symbol>
<symbol id="i-silent" viewBox="0 0 16 16"><circle cx="8" cy="8" r="5.5" stroke-dasharray="2.5 2" stroke-width="2"/></symbol>
<symbol id="i-gone" viewBox="0 0 16 16"><circle cx="8" cy="8" r="5.5"/><path d="m4 12 8-8"/></symbol>
<symbol id="i-old" viewBox="0 0 16 16"><circle cx="8" cy="8" r="6"/><path d="M8 4.5v4l2.5 1.5"/></symbol>
<symbol id="i-pause" viewBox="0 0 16 16"><path d="M5 3v10M11 3v10" stroke-width="2.5"/></symbol>
<symbol id="i-stop" viewBox="0 0 16 16"><path d="M3.5 3.5h9v9h-9z" fill="currentColor"/></symbol>
<symbol id="i-up" viewBox="0 0 16 16"><path d="M3 13 13 3M6.5 3H13v6.5"/></symbol>
<symbol id="i-quiet" viewBox="0 0 16 16"><path d="M2.5 8h11"/></symbol>
<symbol id="i-warn" viewBox="0 0 16 16"><path d="M8 2.5 14.5 14h-13zM8 6.5V10m0 1.5v1"/></symbol>
<symbol id="i-lock" viewBox="0 0 16 16"><path d="M3 7.5h10V14H3zM5 7.5V5a3 3 0 0 1 6 0v2.5"/></symbol>
<pattern id="p-bad" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><path class="p-bad" d="M1 0v5" stroke-width="2.5"/></pattern>
<pattern id="p-act" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(-45)"><path class="p-act" d="M1 0v6" stroke-width="1.5"/></pattern>
<pattern id="p-warn" width="5" height="5" patternUnits="userSpaceOnUse"><circle class="p-warn" cx="2.5" cy="2.5" r="1.4"/></pattern>"##;

/// All shapes, for the head of a page.
pub(super) fn sprite() -> Markup {
    html! { svg class="sprite" aria-hidden="true" { defs { (PreEscaped(SHAPES)) } } }
}

/// One shape.
pub(super) fn icon(name: &str) -> Markup {
    html! { svg class="i" aria-hidden="true" { use href={ "#i-" (name) } {} } }
}

/// A state: shape and word; `tone` is a class of colour, or empty.
pub(super) fn state(name: &str, tone: &str, word: impl maud::Render) -> Markup {
    html! { span class={ "st " (tone) } { (icon(name)) span { (word) } } }
}
