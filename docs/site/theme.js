// What the theme lacks for a keyboard and a screen reader: what scrolls can have the focus, and the
// buttons of each block of code have a name.
function complete() {
  for (const box of document.querySelectorAll("pre > code, .md-typeset__scrollwrap"))
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0
    else box.removeAttribute("tabindex")
  document.querySelectorAll(".md-code__nav").forEach((bar, at) => (bar.ariaLabel = `Block ${at + 1}`))
}
new MutationObserver(complete).observe(document.body, { childList: true, subtree: true })
addEventListener("resize", complete)
complete()
