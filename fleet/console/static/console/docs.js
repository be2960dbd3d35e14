// Who is signed in to the console reads through its session: no red "No API key applied".
const style = document.createElement("style");
style.textContent = `#auth .red-text { font-size: 0; }
#auth .red-text::after { content: "You are signed in: reading works at once. To change something from here, enter an app's token."; font-size: 14px; color: #4b5563; }`;
const page = document.querySelector("rapi-doc");
page.addEventListener("spec-loaded", () => page.shadowRoot.append(style)); // the first drawing empties it
