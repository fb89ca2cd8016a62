import adapter from "@sveltejs/adapter-static";

/** @type {import("@sveltejs/kit").Config} */
export default {
  kit: {
    // Any adapter works. This one needs no server.
    adapter: adapter({ fallback: "index.html" }),
  },
};
