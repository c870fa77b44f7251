// What a bundler would do: writes what the server shows, once, at the build.
const fs = require("fs");

fs.mkdirSync("dist", { recursive: true });
fs.writeFileSync("dist/greeting.txt", "{{greeting}} This is Node.js.\n");
