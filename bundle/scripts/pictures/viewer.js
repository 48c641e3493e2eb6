// NiiVue over the volumes in this page. Without WebGL 2 the plain pictures are all there is.
const canvas = document.querySelector("canvas");
const place = document.getElementById("place");
const checked = (id) => document.getElementById(id).checked;
const bytes = async (id) => {
  const packed = Uint8Array.from(atob(document.getElementById(id).textContent), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
};
let starting;

async function start() {
  const script = document.createElement("script");
  script.textContent = new TextDecoder().decode(await bytes("niivue"));
  document.head.append(script);
  document.getElementById("open").hidden = true;
  canvas.parentElement.hidden = false;
  const viewer = new niivue.Niivue({
    isRadiologicalConvention: true,
    dragAndDropEnabled: false,
    crosshairWidth: 0.5,
    crosshairColor: [0.9, 0.9, 0.9, 0.6],
    multiplanarShowRender: niivue.SHOW_RENDER.NEVER,
    multiplanarLayout: window.innerWidth > 700 ? niivue.MULTIPLANAR_TYPE.ROW : niivue.MULTIPLANAR_TYPE.COLUMN,
    loadingText: "",
    logLevel: "error",
  });
  await viewer.attachToCanvas(canvas);
  viewer.setSliceType(viewer.sliceTypeMultiplanar);
  viewer.onLocationChange = ({ mm }) => {
    const slice = (axis) => Math.floor(mm[axis] / about.spacing_mm[axis]) + about.first[axis] + 1;
    place.textContent = `axial ${slice(2)}, coronal ${slice(1)}, sagittal ${slice(0)}; wheel or arrows: next slice`;
  };
  const load = async (id) => niivue.NVImage.loadFromUrl({ url: `${id}.nii`, name: `${id}.nii`, buffer: await bytes(id) });
  const images = [];
  for (let at = 0; document.getElementById(`image${at}`); at += 1) {
    const image = await load(`image${at}`);
    [image.cal_min, image.cal_max] = [0, 255];
    images.push(image);
  }
  const masks = {};
  for (const element of document.querySelectorAll("[id^=mask_]")) {
    masks[element.id.slice(5)] = await load(element.id);
    masks[element.id.slice(5)].opacity = 0.4;
  }
  const numbers = Object.keys(about.classes);
  const show = () => {
    const at = viewer.scene.crosshairPos.slice();
    const shown = viewer.volumes.length > 0;
    for (const volume of [...viewer.volumes]) viewer.removeVolume(volume);
    viewer.addVolume(images.find((_, index) => checked(`modality${index}`)));
    for (const [name, mask] of Object.entries(masks)) {
      if (!checked(name)) continue;
      const channel = (color) => [0, ...numbers.map((number) => about.classes[number].color[color])];
      mask.setColormapLabel({
        R: channel(0), G: channel(1), B: channel(2),
        A: [0, ...numbers.map((number) => (checked(`class${number}`) ? 255 : 0))],
        I: [0, ...numbers.map(Number)],
        labels: ["", ...numbers.map((number) => about.classes[number].name)],
      });
      viewer.addVolume(mask);
    }
    if (shown) viewer.scene.crosshairPos = at;
    viewer.updateGLVolume();
    viewer.createOnLocationChange();
  };
  document.querySelectorAll(".controls input").forEach((input) => input.addEventListener("change", show));
  show();
  return (voxel) => {
    const mm = voxel.map((index, axis) => (index - about.first[axis] + 0.5) * about.spacing_mm[axis]);
    viewer.scene.crosshairPos = viewer.mm2frac(mm);
    viewer.drawScene();
    viewer.createOnLocationChange();
  };
}

async function find(button) {
  starting ??= start();
  const go = await starting;
  go(button.dataset.voxel.split(" ").map(Number));
  canvas.scrollIntoView({ block: "center" });
}

if (document.createElement("canvas").getContext("webgl2") && "DecompressionStream" in window) {
  document.getElementById("viewer").hidden = false;
  document.getElementById("open").addEventListener("click", () => (starting ??= start()));
  document.querySelectorAll(".find").forEach((button) => {
    button.hidden = false;
    button.addEventListener("click", () => find(button));
  });
}
