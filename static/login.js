// The keyboard's way through the people, and no second login by a double click.
const people = [...document.querySelectorAll(".person")];
people[0]?.focus({ preventScroll: true });

document.querySelector(".people").addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  people.at((people.indexOf(document.activeElement) + step) % people.length).focus();
});

document.querySelector(".people").addEventListener("submit", (event) => {
  // After the submission has taken the button's value along.
  queueMicrotask(() => event.target.classList.add("busy"));
});
