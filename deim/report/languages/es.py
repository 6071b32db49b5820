"""Spanish, as a quality engineer writes it."""

from deim.language import Language

TEXTS = {
    # Words
    "AP50": "AP50",
    "AP": "AP",
    "AP75": "AP75",
    "AR{limit}": "AR{limit}",
    "AP S": "AP P",
    "AP M": "AP M",
    "AP L": "AP G",
    "mAP50": "mAP50",
    "mAP": "mAP",
    "F1": "F1",
    "TP": "VP",
    "FP": "FP",
    "FN": "FN",
    "all": "todas",
    "all (mAP50)": "todas (mAP50)",
    "all classes together": "todas las clases juntas",
    "annotations": "anotaciones",
    "annotations SHA-256": "SHA-256 de las anotaciones",
    "background": "fondo",
    "better": "mejor",
    "both": "ambos",
    "boxes": "cajas",
    "cannot be compared": "no comparable",
    "checkpoint": "checkpoint",
    "checkpoint SHA-256": "SHA-256 del checkpoint",
    "class": "clase",
    "classification": "clasificación",
    "correct": "aciertos",
    "counted per image and class": "contadas por imagen y clase",
    "data": "datos",
    "default": "valor por defecto",
    "device": "dispositivo",
    "difference": "diferencia",
    "duplicate": "duplicado",
    "epochs": "épocas",
    "errors": "errores",
    "escapes": "escapes",
    "images": "imágenes",
    "input, px": "entrada, px",
    "item": "dato",
    "its own boxes": "sus propias cajas",
    "latency, one image at a time": "latencia, imagen a imagen",
    "latency, one tile at a time": "latencia, tesela a tesela",
    "localization": "localización",
    "missed": "no detectado",
    "model": "modelo",
    "network and post-processing": "red y posproceso",
    "network in batches, ms per image": "red por lotes, ms por imagen",
    "network input": "entrada de la red",
    "none": "ninguna",
    "normal class": "clase normal",
    "not distinguishable": "no distinguible",
    "not measured": "no medido",
    "option": "opción",
    "overkill": "sobre-rechazo",
    "parameters, M": "parámetros, M",
    "precision": "precisión",
    "raw detections per image": "detecciones brutas por imagen",
    "recall": "exhaustividad",
    "report version": "versión del informe",
    "run": "ejecución",
    "threshold": "umbral",
    "time per image in batches": "tiempo por imagen en lotes",
    "training, hours": "entrenamiento, horas",
    "training, with augmentation": "entrenamiento, con aumento de datos",
    "validation": "validación",
    "value": "valor",
    "verdict": "veredicto",
    "versions": "versiones",
    "with reading and preparing": "con lectura y preparación",
    "worse": "peor",
    "January": "enero",
    "February": "febrero",
    "March": "marzo",
    "April": "abril",
    "May": "mayo",
    "June": "junio",
    "July": "julio",
    "August": "agosto",
    "September": "septiembre",
    "October": "octubre",
    "November": "noviembre",
    "December": "diciembre",
    # Verdict
    "No verdict: the split has no ground-truth box.": (
        "Sin veredicto: la partición no tiene ninguna caja anotada."
    ),
    "No verdict on escapes: the split has no defective image.": (
        "Sin veredicto sobre escapes: la partición no tiene ninguna imagen defectuosa."
    ),
    "The detector has learned next to nothing: mAP50 is {ap50:.3f}. Train for more epochs, or start from "
    "trained weights.": (
        "El detector no ha aprendido casi nada: el mAP50 es {ap50:.3f}. Entrénelo durante más épocas o parta "
        "de pesos entrenados."
    ),
    "Too many defects escape: {rate} of the defective images, limit {limit}.": (
        "Escapan demasiados defectos: {rate} de las imágenes defectuosas, límite {limit}."
    ),
    "Escapes are within the limit: {rate} of the defective images, limit {limit}.": (
        "Los escapes están dentro del límite: {rate} de las imágenes defectuosas, límite {limit}."
    ),
    "{number} of {images} without a hit": "{number} de {images} sin acierto",
    "{number} of {images} with a box": "{number} de {images} con alguna caja",
    "{number} of {boxes} found": "{number} de {boxes} con acierto",
    "{number} of {detections} correct": "aciertos: {number} de {detections}",
    "All numbers show the detector as it is delivered, after NMS ({rule}) and the threshold of each class "
    "({origin}). Curves, and the AP50 beside them, move the threshold after the same NMS. Only what is "
    "called COCO is of all raw detections, before both, as in publications.": (
        "Todas las cifras muestran el detector tal como se entrega, tras la NMS ({rule}) y el umbral de cada "
        "clase ({origin}). Las curvas, y el AP50 junto a ellas, desplazan el umbral tras la misma NMS. Solo "
        "lo que se llama COCO se calcula sobre todas las detecciones brutas, antes de ambos pasos, como en "
        "las publicaciones."
    ),
    # Page
    "Evaluation of {report}": "Evaluación de {report}",
    "{model} on {split}": "{model} sobre {split}",
    "{file}, {images}, {boxes}; {day} {month} {year}, {time} UTC": (
        "{file}, {images}, {boxes}; {day} de {month} de {year}, {time} UTC"
    ),
    "{file}, {images}, {boxes}": "{file}, {images}, {boxes}",
    "Summary": "Resumen",
    "Classes": "Clases",
    "Charts": "Gráficos",
    "COCO metrics": "Métricas COCO",
    "Errors and correct detections of each class": "Errores y aciertos de cada clase",
    "Convergence": "Convergencia",
    "Provenance": "Procedencia",
    "How to read this": "Cómo leer este informe",
    "Swipe the table sideways to see all columns.": (
        "Deslice la tabla hacia un lado para ver todas las columnas."
    ),
    "Blue is correct, orange is wrong; a yellow frame marks the box in question.": (
        "Azul: acierto; naranja: error. Un marco amarillo señala la caja en cuestión."
    ),
    "There is neither a box nor a detection.": "No hay ninguna caja ni ninguna detección.",
    "{file} is not shown: it is missing in {folder}.": "{file} no se muestra: falta en {folder}.",
    "{number} images are not shown: they are missing in {folder}, such as {file}.": (
        "{number} imágenes no se muestran: faltan en {folder}, por ejemplo {file}."
    ),
    "{path} ({kind} weights)": "{path} (pesos {kind})",
    "{path} ({kind} weights, epoch {epoch})": "{path} (pesos {kind}, época {epoch})",
    "{height} x {width} px (height x width), {resize}": "{height} x {width} px (alto x ancho), {resize}",
    ", tiles of {size} px, overlap {overlap:g}": ", teselas de {size} px, solape {overlap:g}",
    "{ms:.1f} ms, median, network and post-processing": "{ms:.1f} ms, mediana, red y posproceso",
    "{model}, {parameters:.1f} M parameters": "{model}, {parameters:.1f} M de parámetros",
    "AP is COCO's average precision, the mean over the IoU thresholds 0.50 to 0.95; AP50 at IoU 0.50 "
    "alone. AP S, M and L count boxes with an area up to 32², from 32² to 96² and above 96² px. Crowd "
    "regions are no boxes.": (
        "AP es la precisión media de COCO, promediada sobre los umbrales de IoU de 0.50 a 0.95; AP50, solo "
        "con IoU 0.50. AP P, M y G (cajas pequeñas, medianas y grandes) cuentan las de área hasta 32², de "
        "32² a 96² y mayor de 96² px. Las regiones de grupo no son cajas."
    ),
    "Precision, recall and F1 hold at the stated threshold and IoU 0.50; they are not COCO metrics.": (
        "Precisión, exhaustividad y F1 valen para el umbral indicado e IoU 0.50; no son métricas de COCO."
    ),
    "An escape is a defective image on which no detection overlaps a defect by IoU 0.50 or more, whatever "
    "their classes; overkill is a good image with any detection of a defect class.": (
        "Un escape es una imagen defectuosa en la que ninguna detección solapa un defecto con IoU 0.50 o "
        "más, sean cuales sean sus clases; el sobre-rechazo es una imagen buena con alguna detección de una "
        "clase de defecto."
    ),
    "Intervals say how far a score would move with other images of the same kind. They do not include the "
    "chance in training: another seed gives another detector. In simulations nineteen of twenty held the "
    "truth, but only about nine of ten for mAP over IoU 0.50 to 0.95.": (
        "Los intervalos dicen cuánto variaría una métrica con otras imágenes del mismo tipo. No incluyen el "
        "azar del entrenamiento: otra semilla da otro detector. En simulaciones, diecinueve de cada veinte "
        "contenían el valor real, pero solo unos nueve de cada diez para el mAP con IoU de 0.50 a 0.95."
    ),
    # Summary
    "Data of {split}: {data}.": "Datos de {split}: {data}.",
    "{images} ({empty} without boxes), {boxes}": "{images} ({empty} sin cajas), {boxes}",
    "{images} ({empty} without boxes), {boxes} read, {crowd}{reasons}, {trainable} trainable": (
        "{images} ({empty} sin cajas), leídas: {boxes}, {crowd}{reasons}, útiles para entrenar: {trainable}"
    ),
    ", {number} dropped ({rule})": ", descartadas: {number} ({rule})",
    "{images} of the split with more boxes than detections: at most {made} are made for an image "
    "(model.decoder.num_queries) and {counted} of a class counted (evaluation.max_detections). The rest "
    "is missed.": (
        "{images} de la partición con más cajas que detecciones: por imagen se hacen como máximo {made} "
        "(model.decoder.num_queries) y se cuentan {counted} de cada clase (evaluation.max_detections). El "
        "resto queda sin detectar."
    ),
    "At the operating points ({origin}, {images}): {tp} of {boxes} found, {false_boxes}{rates}.": (
        "En los puntos de operación ({origin}, {images}): {tp} de {boxes} con acierto, {false_boxes}{rates}."
    ),
    "Parts: {parts}.": "Piezas: {parts}.",
    "no defective image, so no escape rate": "ninguna imagen defectuosa, así que no hay tasa de escapes",
    "escape rate {rate} ({number} of {images} without a hit, {unmarked} without any box)": (
        "tasa de escapes {rate} ({number} de {images} sin acierto, {unmarked} sin ninguna caja)"
    ),
    "no good image, so no overkill rate": "ninguna imagen buena, así que no hay tasa de sobre-rechazo",
    "overkill rate {rate} ({number} of {images}), {false_boxes:.2f} false boxes per good image": (
        "tasa de sobre-rechazo {rate} ({number} de {images}), {false_boxes:.2f} cajas falsas por imagen buena"
    ),
    "No threshold for an escape rate of {limit} or less: {split} has no defective image.": (
        "Ningún umbral para una tasa de escapes de {limit} o menos: {split} no tiene imágenes defectuosas."
    ),
    "No threshold gives an escape rate of {limit} or less on {split}: even if every detection is kept, it "
    "is {lowest}.": (
        "Ningún umbral da una tasa de escapes de {limit} o menos sobre {split}: incluso si se conservan "
        "todas las detecciones, es {lowest}."
    ),
    "To let at most {limit} of the defective images of {split} escape, use the threshold {threshold:.3f} "
    "for all classes. Here it gives: {result}.": (
        "Para que escape como máximo {limit} de las imágenes defectuosas de {split}, use el umbral "
        "{threshold:.3f} para todas las clases. Aquí da: {result}."
    ),
    "Most confused: {pair}.": "Mayor confusión: {pair}.",
    "No box was predicted as another class.": "Ninguna caja se predijo como otra clase.",
    "Duplicates: {detections} ({rate}) on a box that a better detection hits": (
        "Duplicados: {detections} ({rate}) sobre una caja en la que acierta una detección mejor"
    ),
    "{before}; NMS is off.": "{before}; la NMS está desactivada.",
    "{before}. With NMS ({rule}), {after} remain{ap50}.": "{before}. Con NMS ({rule}) quedan {after}{ap50}.",
    ", and mAP50 is {ap50:.3f}": ", y el mAP50 es {ap50:.3f}",
    "No AP: the split has no ground-truth box ({images}).": (
        "Sin AP: la partición no tiene ninguna caja anotada ({images})."
    ),
    "COCO, all raw detections before NMS and thresholds: mAP50 {ap50:.3f}{spread}; mAP {ap:.3f} (n = "
    "{images}, {boxes}).": (
        "COCO, todas las detecciones brutas antes de la NMS y los umbrales: mAP50 {ap50:.3f}{spread}; mAP "
        "{ap:.3f} (n = {images}, {boxes})."
    ),
    ", {level} interval {low:.3f} to {high:.3f}": ", intervalo del {level} de {low:.3f} a {high:.3f}",
    "default thresholds, none chosen on {split}": "umbrales por defecto, ninguno elegido sobre {split}",
    "{goal}, chosen on {split}": "{goal}, elegido sobre {split}",
    "best class of each query": "la mejor clase de cada consulta",
    "no box that overlaps a better one of its class by IoU > {iou:g}": (
        "ninguna caja que solape con IoU > {iou:g} otra mejor de su clase"
    ),
    "no box that overlaps a better one by IoU > {iou:g}": (
        "ninguna caja que solape otra mejor con IoU > {iou:g}"
    ),
    "Best mAP {ap:.3f} in epoch {epoch} of {planned}.": (
        "Mejor mAP, {ap:.3f}, en la época {epoch} de {planned}."
    ),
    "Early stopping ended the run after epoch {epoch}.": (
        "La parada temprana terminó la ejecución tras la época {epoch}."
    ),
    "The run is not finished: {epochs} epochs are done.": (
        "La ejecución no ha terminado; épocas completadas: {epochs}."
    ),
    "Too few validations to tell whether the score still rises.": (
        "Hay muy pocas validaciones para saber si la métrica sigue subiendo."
    ),
    "The score still rises at the end: train longer.": (
        "La métrica sigue subiendo al final: entrene durante más tiempo."
    ),
    "The score no longer rises at the end.": "La métrica ya no sube al final.",
    # Tables
    "{low} to {high}": "{low} a {high}",
    "Average precision, over all raw detections, before thresholds and NMS": (
        "Precisión media (AP) sobre todas las detecciones brutas, antes de los umbrales y la NMS"
    ),
    "After thresholds and NMS: {origin}": "Tras los umbrales y la NMS: {origin}",
    "{note}; threshold: {origin}": "{note}; umbral: {origin}",
    "TP: boxes found; FP: false boxes; FN: missed boxes.": (
        "VP: cajas con acierto; FP: cajas falsas; FN: cajas no detectadas."
    ),
    "Small numbers: {level} intervals from {resamples} resamples of the {images} images ({method}).": (
        "Cifras pequeñas: intervalos del {level} a partir de {resamples} remuestreos de las {images} "
        "imágenes ({method})."
    ),
    # Charts
    "AP50 of each class": "AP50 de cada clase",
    "AP50 of each class; dashed: mean, {mean:.3f}": "AP50 de cada clase; trazos: media, {mean:.3f}",
    "AP50 of each class by run": "AP50 de cada clase por ejecución",
    "{name}\nn = {boxes} in {images}": "{name}\nn = {boxes} en {images}",
    "AP at IoU 0.50, {basis}": "AP con IoU 0.50, {basis}",
    "AP at IoU 0.50, {basis}\nlines: 95% intervals": "AP con IoU 0.50, {basis}\nlíneas: intervalos del 95 %",
    "after NMS": "tras la NMS",
    "all raw detections": "todas las detecciones brutas",
    "no class": "ninguna clase",
    "no ground truth": "sin anotaciones",
    "Precision and recall": "Precisión y exhaustividad",
    "Precision and recall; dots: operating points": "Precisión y exhaustividad; puntos: los de operación",
    "recall: share of the boxes that are found": "exhaustividad: proporción de cajas con acierto",
    "precision: share of the\ndetections that are correct": "precisión: proporción de\ndetecciones correctas",
    "no class has both ground truth and detections": "ninguna clase tiene anotaciones y detecciones",
    "Precision, recall and F1 by threshold": "Precisión, exhaustividad y F1 según el umbral",
    "By score threshold; dots: operating points": "Según el umbral; puntos: los de operación",
    "score threshold of the class": "umbral de puntuación de la clase",
    "Confusion of classes": "Confusión de clases",
    "Confusion, IoU 0.5": "Confusión, IoU 0.5",
    "predicted as (last column: missed)": "predicha como (última columna: no detectada)",
    "ground truth\n(last row: nothing there)": "anotación\n(última fila: no hay nada)",
    "% of the row": "% de la fila",
    "Escapes against overkill": "Escapes frente a sobre-rechazo",
    "overkill: % of the good images\nwith a box (n = {number})": (
        "sobre-rechazo: % de imágenes buenas\ncon alguna caja (n = {number})"
    ),
    "escapes: % of the defective\nimages without a hit (n = {number})": (
        "escapes: % de imágenes\ndefectuosas sin acierto (n = {number})"
    ),
    "the split has no good image": "la partición no tiene imágenes buenas",
    "the split has no defective image": "la partición no tiene imágenes defectuosas",
    "one threshold for all classes, falling to the right": (
        "un umbral para todas las clases, decrece a la derecha"
    ),
    "operating points of the classes": "puntos de operación de las clases",
    "threshold {threshold:.3f}, for few escapes": "umbral {threshold:.3f}, para pocos escapes",
    "limit of escapes, {limit:g}%": "límite de escapes, {limit:g} %",
    "no image": "ninguna imagen",
    "Kinds of errors": "Tipos de error",
    "Errors of the kept detections, by kind": "Errores de las detecciones conservadas, por tipo",
    "number of errors": "número de errores",
    "points of AP50 gained\nwithout them": "puntos de AP50 que se\nganarían sin ellos",
    "all are missed": "no se detecta ninguna",
    "Validation score by epoch": "Métrica de validación por época",
    "COCO score on the\nvalidation split": "métrica COCO sobre la\npartición de validación",
    "epoch, of {last}": "época, de {last}",
    "best mAP, epoch {best}": "mejor mAP, época {best}",
    "no validation": "ninguna validación",
    "Loss by epoch": "Pérdida por época",
    "loss of the last layer": "pérdida de la última capa",
    "no loss in the log": "ninguna pérdida en el registro",
    # Images
    "ground truth: {number}": "anotaciones: {number}",
    "detections: {number}": "detecciones: {number}",
    "No images.": "Ninguna imagen.",
    "ground truth, {file}": "anotaciones, {file}",
    "kept detections, {width} x {height} px at x {x}, y {y}": (
        "detecciones conservadas, {width} x {height} px en x {x}, y {y}"
    ),
    "{name} found at {score:.2f} ({iou})": "{name}: acierto con puntuación {score:.2f} ({iou})",
    "{name} missed: {cause}": "{name}, no detectado: {cause}",
    "no detection of it at any score": "ninguna detección suya con ninguna puntuación",
    "best score {score}, threshold {threshold}": "mejor puntuación {score}, umbral {threshold}",
    "best score {score:.2f} was removed by NMS": "la NMS eliminó la mejor puntuación, {score:.2f}",
    "best score {score:.2f} hits another box": "la mejor puntuación, {score:.2f}, acierta en otra caja",
    "; predicted as {name} at {score:.2f}": "; predicho como {name} con {score:.2f}",
    "; the box at {score:.2f} overlaps it too little ({iou})": (
        "; la caja con {score:.2f} lo solapa demasiado poco ({iou})"
    ),
    "{name} at {score:.2f}": "{name} con {score:.2f}",
    "{detection} where there is none": "{detection} donde no hay ninguno",
    "{detection} on a box of {other}": "{detection} sobre una caja de {other}",
    "{detection} overlaps the box of {other} too little ({iou})": (
        "{detection} solapa demasiado poco la caja de {other} ({iou})"
    ),
    "{detection} on a box of {other} that a higher score hits": (
        "{detection} sobre una caja de {other} en la que acierta una puntuación mayor"
    ),
    "{detection} beside a box of {other} ({iou})": "{detection} junto a una caja de {other} ({iou})",
    # Comparison
    "{number} runs on {split}": "{number} ejecuciones sobre {split}",
    "Side by side": "Lado a lado",
    "The images on which the runs differ most": "Las imágenes en las que más difieren las ejecuciones",
    "ground truth, and the detections of each run": "anotaciones y detecciones de cada ejecución",
    "Kept detections: blue is correct, orange is wrong, gray in a crowd region": (
        "Detecciones conservadas: azul, acierto; naranja, error; gris, en una región de grupo"
    ),
    "{run}: {correct} correct, {wrong} wrong": "{run}: aciertos {correct}, errores {wrong}",
    "Each interval stands alone: of twenty comparisons of equal runs, one is expected to look different. "
    "The intervals hold for other images of the same kind; another seed of the same training may differ "
    "too.": (
        "Cada intervalo vale por sí solo: de veinte comparaciones de ejecuciones iguales, cabe esperar que "
        "una parezca diferente. Los intervalos valen para otras imágenes del mismo tipo; otra semilla del "
        "mismo entrenamiento también puede diferir."
    ),
    "Options that differ": "Opciones que difieren",
    "Options that differ, except {names}: {number}.": "Opciones que difieren, salvo {names}: {number}.",
    "Those of {runs} are unknown: evaluate the checkpoint again with deim evaluate.": (
        "Las de {runs} se desconocen: evalúe de nuevo el checkpoint con deim evaluate."
    ),
    "{run} against {first}: mAP50 {change}.": "{run} frente a {first}: mAP50 {change}.",
    "{value:+.3f}, {level} interval {low:+.3f} to {high:+.3f} ({images}): {verdict}": (
        "{value:+.3f}, intervalo del {level} de {low:+.3f} a {high:+.3f} ({images}): {verdict}"
    ),
    "cannot be compared, because there is no ground truth": "no se puede comparar, porque no hay anotaciones",
    "{run} is better than {first} in AP50 of {classes}.": (
        "{run} es mejor que {first} en el AP50 de {classes}."
    ),
    "{run} is worse than {first} in AP50 of {classes}.": "{run} es peor que {first} en el AP50 de {classes}.",
    "Models: AP over all raw detections": "Modelos: AP sobre todas las detecciones brutas",
    "{level} interval of mAP50": "intervalo del {level} de mAP50",
    "AP50 of each class, over all raw detections": "AP50 de cada clase, sobre todas las detecciones brutas",
    "Input is height x width where they differ. Hours are those of the training steps and of waiting for "
    "their data, over all parts of a resumed run, without validation.": (
        "La entrada es alto x ancho cuando difieren. Las horas son las de los pasos de entrenamiento y las "
        "de espera de sus datos, en todas las partes de una ejecución reanudada, sin la validación."
    ),
    "After the thresholds and the NMS of each run": "Tras los umbrales y la NMS de cada ejecución",
    "AP50 of {run} against {first}, over all raw detections": (
        "AP50 de {run} frente a {first}, sobre todas las detecciones brutas"
    ),
    "Small numbers: {level} intervals of the difference on the same {resamples} resamples of the images.": (
        "Cifras pequeñas: intervalos del {level} de la diferencia sobre los mismos {resamples} remuestreos "
        "de las imágenes."
    ),
    "mAP against epoch": "mAP por época",
    "mAP50 on validation by epoch; stars: highest": "mAP50 en validación por época; estrellas: máximo",
    "no run has its metrics.jsonl beside the checkpoint": (
        "ninguna ejecución tiene su metrics.jsonl junto al checkpoint"
    ),
    "Confusion of classes: {first} and {run}": "Confusión de clases: {first} y {run}",
    # Text maps
    "Responses to the text of {name}, blue: -1, red: 1; frames: true boxes, white if of {name}": (
        "Respuestas al texto de {name}, azul: -1, rojo: 1; marcos: cajas anotadas, blancos los de {name}"
    ),
    "No image of this split shows {name}, and none is empty.": (
        "Ninguna imagen de esta partición muestra {name}, y ninguna está vacía."
    ),
    "{panel}, highest {score:.2f}": "{panel}, máximo {score:.2f}",
    "detector score": "puntuación del detector",
    "cosine with the text": "coseno con el texto",
    "fused score": "puntuación fusionada",
}

STORED = {
    # Thresholds
    "best F1": "mejor F1",
    "recall at least {recall:g}": "exhaustividad de al menos {recall}",
    "at most {limit:g} false boxes of the class an image": (
        "como máximo {limit} cajas falsas de la clase por imagen"
    ),
    "All score thresholds stay at the default, {default:g}: {split} has no boxes to choose them on.": (
        "Todos los umbrales de puntuación quedan en el valor por defecto, {default}: {split} no tiene cajas "
        "con las que elegirlos."
    ),
    "The detector has learned nothing: mAP50 on {split} is {ap50:.4g}, less than {least:g}. All score "
    "thresholds stay at the default, {default:g}. Train for more epochs, or start from trained weights "
    "with model.init_from.": (
        "El detector no ha aprendido nada: el mAP50 sobre {split} es {ap50}, menos de {least}. Todos los "
        "umbrales de puntuación quedan en el valor por defecto, {default}. Entrénelo durante más épocas o "
        "parta de pesos entrenados con model.init_from."
    ),
    "never predicted": "nunca predicha",
    "never predicted to choose on": "nunca predicha, no hay con qué elegir",
    "no ground-truth box of this class to choose on": "ninguna caja anotada de esta clase con la que elegir",
    "no ground-truth box of this class in the split": "ninguna caja anotada de esta clase en la partición",
    "no {sizes_phrase} ground-truth box of this class in the split": (
        "ninguna caja anotada {sizes_phrase} de esta clase en la partición"
    ),
    "{first_phrase} or {second_phrase}": "{first_phrase} o {second_phrase}",
    "small": "pequeña",
    "medium": "mediana",
    "large": "grande",
    "no detection is correct at any threshold": "ninguna detección acierta con ningún umbral",
    "recall {recall:g} is out of reach, the highest is {highest:.3f}": (
        "la exhaustividad {recall} no se alcanza, la máxima es {highest}"
    ),
    "even the highest scores are false in more than {limit:g} boxes an image": (
        "incluso las puntuaciones más altas son falsas en más de {limit} cajas por imagen"
    ),
    "with NMS, recall is {recall:.3f}": "con NMS, la exhaustividad es {recall}",
    "with NMS, {rate:.3g} false boxes an image remain": "con NMS quedan {rate} cajas falsas por imagen",
    # Metrics
    "images resampled with replacement; interval from the spread of the log-odds of AP over the "
    "resamples, corrected for their bias, with Student's factor": (
        "imágenes remuestreadas con reemplazo; intervalo a partir de la dispersión del log-odds del AP en "
        "los remuestreos, corregido su sesgo, con el factor de Student"
    ),
    "{number:d} of {boxes:d} {name} were predicted as {other_name} ({percent:.0%})": (
        "{number} de {boxes} {name} se predijeron como {other_name} ({percent})"
    ),
    "{number:d} of {boxes:d} {name} were predicted as {other_name} ({percent:.0%}), and {back:d} of "
    "{other_boxes:d} {other_name} as {name} ({back_percent:.0%})": (
        "{number} de {boxes} {name} se predijeron como {other_name} ({percent}), y {back} de {other_boxes} "
        "{other_name} como {name} ({back_percent})"
    ),
    # Text fusion
    "Text fusion": "Fusión con texto",
    "{model} with text fusion": "{model} con fusión de texto",
    "With text ({encoder}) against the detector alone: mAP {ap_phrase}; mAP50 {ap50_phrase}.": (
        "Con texto ({encoder}) frente al detector solo: mAP {ap_phrase}; mAP50 {ap50_phrase}."
    ),
    "{value:+.3f} ({interval_phrase})": "{value} ({interval_phrase})",
    "{before:.3f} to {after:.3f}": "de {before} a {after}",
    "{before:.3f} to {after:.3f} ({interval_phrase})": "de {before} a {after} ({interval_phrase})",
    "95% interval {low:+.3f} to {high:+.3f}, {verdict_phrase}": (
        "intervalo del 95 % de {low} a {high}, {verdict_phrase}"
    ),
    "better": "mejor",
    "worse": "peor",
    "not distinguishable": "no distinguible",
    "cannot be compared": "no se puede comparar",
    "{name} predicted as {other_name}: {before:d} of {boxes:d} boxes before, {after:d} with text.": (
        "{name} predicho como {other_name}: {before} de {boxes} cajas antes, {after} con texto."
    ),
    "Without boxes, and so not compared: {names}.": "Sin cajas, y por tanto no comparadas: {names}.",
    "No class loses more than {points_phrase} of AP by the text.": (
        "Ninguna clase pierde más de {points_phrase} de AP por el texto."
    ),
    "No other class loses more than {points_phrase} of AP by the text.": (
        "Ninguna otra clase pierde más de {points_phrase} de AP por el texto."
    ),
    "1 point": "1 punto",
    "{number:g} points": "{number} puntos",
    "{name} loses {points:.1f} points of AP by the text: {change_phrase}.": (
        "{name} pierde {points} puntos de AP por el texto: {change_phrase}."
    ),
    "For {names} the detector alone is better: {path}.": "Para {names} es mejor el detector solo: {path}.",
}
"""Their values are read from English sentences, so that no placeholder has a format."""

SPANISH = Language(
    code="es",
    texts=TEXTS,
    stored=STORED,
    nouns={
        "image": ("imagen", "imágenes"),
        "defective image": ("imagen defectuosa", "imágenes defectuosas"),
        "good image": ("imagen buena", "imágenes buenas"),
        "box": ("caja", "cajas"),
        "false box": ("caja falsa", "cajas falsas"),
        "detection": ("detección", "detecciones"),
        "crowd region": ("región de grupo", "regiones de grupo"),
    },
    percent_sign="\N{NO-BREAK SPACE}%",
)
