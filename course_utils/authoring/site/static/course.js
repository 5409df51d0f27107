// A link into a folded section opens it, also when the page is already on screen.
function openFold() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let fold = target?.closest('details') ?? target?.querySelector(':scope > details'); fold;
    fold = fold.parentElement.closest('details')) fold.open = true;
}
addEventListener('hashchange', openFold);
addEventListener('DOMContentLoaded', openFold);
