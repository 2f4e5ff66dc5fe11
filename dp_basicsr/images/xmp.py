"""Correct Adobe's XML for a scaled picture: adapt sizes and places in pixels, leave out what the new file lacks."""

from __future__ import annotations

import re
from typing import Any
from xml.dom import minidom

_GOOGLE = "http://ns.google.com/photos/1.0/"
_XMP, _TIFF, _EXIF, _RAW = (
    f"http://ns.adobe.com/{name}/1.0/" for name in ("xap", "tiff", "exif", "camera-raw-settings")
)
_DIMENSIONS = f"{_XMP}sType/Dimensions"
_REGIONS = (
    "http://(www.metadataworkinggroup.com/schemas|ns.acdsee.com)/regions/Regions|"
    "http://ns.microsoft.com/photo/1.2/RegionInfo|http://iptc.org/std/Iptc4xmpExt/2008-02-29/ImageRegion"
)
# Namespace and name of properties: of a film, a map of gains or depths, or XMP behind the old picture; of a small
# picture; places in units of their own.
_LEFT_OUT = re.compile(
    rf"{_GOOGLE}(?!panorama/|camera/).*|{_GOOGLE}camera/(Motion|MicroVideo).*|http://ns.adobe.com/hdr-gain-map/1.0/.*|"
    rf"http://ns.apple.com/HDRGainMap/1.0/.*|http://ns.adobe.com/xmp/note/HasExtendedXMP|{_XMP}Thumbnails|"
    rf"{_RAW}Crop(Width|Height|Units?)|{_EXIF}Subject(Area|Location)"
)
# Places in the picture as it was stored.
_PLACES = re.compile(rf"{_GOOGLE}panorama/.*|{_REGIONS}|{_RAW}(Crop.*|HasCrop)")
_IN_PIXELS = re.compile(r"(Area:unit|rbUnit)(=[\"']|>)\s*pixel")
_ON_PAPER = re.compile(r"Dim:unit(=[\"']|>)\s*(?!pixel)")  # a size in inches, points ...
_SIZES = re.compile(rf"({_TIFF}|{_EXIF})((?P<across>ImageWidth|PixelXDimension)|ImageLength|PixelYDimension)")
# Numbers of pixels, and of pixels per length.
_SCALED = re.compile(
    rf"({_GOOGLE}panorama/.*|{_DIMENSIONS}|{_EXIF})"
    r"((?P<across>Width|Left|#w|FocalPlaneXResolution)|Height|Top|#h|FocalPlaneYResolution).*"
)
_NUMBER = re.compile(r"^\s*\d+(\.\d+)?")


def corrected(xmp: bytes, before: tuple[int, int], after: tuple[int, int], orientation: int) -> tuple[bytes, list[str]]:
    """Make XMP speak of the upright result, and return also the names of what was left out.

    ``before`` and ``after`` are width and height, upright; ``orientation`` is EXIF's of the file, 0 if it had none.
    Raises ExpatError for what is no XML, and RecursionError for a bomb.
    """
    # Some cameras pad it with zeros.
    document = minidom.parseString(xmp.rstrip(b"\0"))
    original, dropped, waiting = document.toxml(), list[str](), [document.documentElement]
    while waiting:
        element: Any = waiting.pop()
        # XMP writes a property as an attribute or as an element.
        for node in [*element.attributes.values(), *element.childNodes]:
            name = f"{node.namespaceURI}{node.localName}"
            is_attribute = node.nodeType == minidom.Node.ATTRIBUTE_NODE
            is_wrong = _LEFT_OUT.fullmatch(name) or (orientation > 1 and _PLACES.fullmatch(name))
            # Regions are shares of the picture, or else pixels of the old one.
            if is_wrong or (re.fullmatch(_REGIONS, name) and _IN_PIXELS.search(node.toxml())):
                dropped.append(f"XMP's {node.prefix}:{node.localName}")
                (element.removeAttributeNode if is_attribute else element.removeChild)(node)
            elif name == f"{_TIFF}Orientation" and not orientation:
                # Of XMP alone, which was not applied.
                continue
            elif name.startswith(_DIMENSIONS) and _ON_PAPER.search(element.toxml()):
                continue
            elif is_attribute:
                node.value = _scaled(name, node.value, before, after)
            elif node.nodeType == minidom.Node.ELEMENT_NODE:
                waiting.append(node)
                if len(node.childNodes) == 1 and node.firstChild.nodeType == minidom.Node.TEXT_NODE:
                    node.firstChild.data = _scaled(name, node.firstChild.data, before, after)
    if document.toxml() == original:
        return xmp, dropped
    return "".join(node.toxml() for node in document.childNodes).encode(), dropped


def _scaled(name: str, text: str, before: tuple[int, int], after: tuple[int, int]) -> str:
    """Return the value of a property in the new picture."""
    if name == f"{_TIFF}Orientation":
        return "1"
    if size := _SIZES.fullmatch(name):
        return str(after[0 if size["across"] else 1])
    scaled, number = _SCALED.fullmatch(name), _NUMBER.match(text)
    if not scaled or not number:
        return text
    side = 0 if scaled["across"] else 1
    return f"{float(number[0]) * after[side] / before[side]:.0f}{text[number.end() :]}"
