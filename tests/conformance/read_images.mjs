// Read images as browsers do, by nifti-reader-js and by the DecompressionStream of the WHATWG, and print as JSON
// the shape of each and the SHA-256 of its voxels.
//
// deno run --allow-read read_images.mjs FOLDER_OF_MODULES IMAGE...

const [modules, ...paths] = Deno.args;
const nifti = await import(`file://${modules}/nifti-reader-js/dist/nifti.js`);

async function sha256(buffer) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", buffer));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function inflated(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return await new Response(stream).arrayBuffer();
}

const read = {};
for (const path of paths) {
  const bytes = Deno.readFileSync(path);
  const whole = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
  const data = nifti.isCompressed(whole) ? nifti.decompress(whole) : whole;
  const header = nifti.readHeader(data);
  const image = nifti.readImage(header, data);
  const rest = path.endsWith(".gz") ? (await inflated(bytes)).slice(header.vox_offset) : image;
  read[path] = {
    shape: header.dims.slice(1, 1 + header.dims[0]),
    voxels: await sha256(image),
    stream: await sha256(rest),
  };
}
console.log(JSON.stringify(read));
