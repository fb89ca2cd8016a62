// The member is verified in the browser, so there is nothing to render on a server.
export const ssr = false;
