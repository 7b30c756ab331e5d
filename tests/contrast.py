"""How far words stand out from what is behind them, asked of a browser."""

# The contrast of each element that holds text with what is behind it (WCAG 2.2, 1.4.3), the least first.
CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = color => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const behind = element => { const layers = [];
    for (let e = element; e; e = e.parentElement) layers.unshift(rgba(getComputedStyle(e).backgroundColor));
    const over = (below, [r, g, b, a]) => below.map((v, i) => v + ([r, g, b][i] - v) * a / 255);
    return layers.reduce(over, [255, 255, 255]); };
  const found = [];
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!own || ['STYLE', 'title', 'desc'].includes(element.tagName)) continue;
    const style = getComputedStyle(element), svg = element.namespaceURI.endsWith('svg');
    const pair = [light(rgba(svg ? style.fill : style.color)), light(behind(element))].sort((a, b) => b - a);
    found.push([(pair[0] + 0.05) / (pair[1] + 0.05), element.textContent.slice(0, 40)]);
  }
  return found.sort((a, b) => a[0] - b[0]);
}"""
