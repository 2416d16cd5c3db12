"""What of a DICOM object may leave the hospital: a list of what is kept; everything else goes.

Stricter than the Basic Profile of DICOM PS3.15 annex E, whose list of what must go has no end (private
attributes, new ones): an attribute stays only if it stands here and its value is of the kind given here.
"""

import re

from pydicom.datadict import tag_for_keyword


def _words(text: str) -> list[str]:
    return text.split()


UIDS = _words(
    """
    SOPInstanceUID StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID ReferencedSOPInstanceUID
    ReferencedFrameOfReferenceUID DimensionOrganizationUID TrackingUID
    SynchronizationFrameOfReferenceUID
    """
)
"""Replaced by the keyed map."""

STANDARD_UIDS = _words(
    """
    SOPClassUID ReferencedSOPClassUID
    """
)
"""Kept if they are the standard's own."""

NUMBERS = _words(
    """
    SeriesNumber InstanceNumber AcquisitionNumber SamplesPerPixel Rows Columns BitsAllocated BitsStored
    HighBit PixelRepresentation PlanarConfiguration SmallestImagePixelValue LargestImagePixelValue
    PixelPaddingValue PixelPaddingRangeLimit PixelSpacing SliceThickness SpacingBetweenSlices
    ImagePositionPatient ImageOrientationPatient SliceLocation RescaleIntercept RescaleSlope
    WindowCenter WindowWidth KVP XRayTubeCurrent ExposureTime Exposure ReconstructionDiameter
    DataCollectionDiameter GantryDetectorTilt TableHeight NumberOfFrames FrameIncrementPointer
    GridFrameOffsetVector DoseGridScaling ReferencedFrameNumber ROINumber ROIDisplayColor
    NumberOfContourPoints ContourNumber ContourData ReferencedROINumber ObservationNumber SegmentNumber
    MaximumFractionalValue DimensionIndexPointer FunctionalGroupPointer DimensionIndexValues
    InStackPositionNumber ReferencedSegmentNumber ReferencedFractionGroupNumber ContourSlabThickness
    ROIVolume RecommendedDisplayCIELabValue
    """
)
"""Kept if every character is a number's."""

SEQUENCES = _words(
    """
    ReferencedFrameOfReferenceSequence RTReferencedStudySequence RTReferencedSeriesSequence
    ContourImageSequence StructureSetROISequence ROIContourSequence ContourSequence
    RTROIObservationsSequence RTROIIdentificationCodeSequence ReferencedRTPlanSequence
    ReferencedStructureSetSequence SegmentSequence SegmentedPropertyCategoryCodeSequence
    SegmentedPropertyTypeCodeSequence SegmentedPropertyTypeModifierCodeSequence AnatomicRegionSequence
    AnatomicRegionModifierSequence DimensionOrganizationSequence DimensionIndexSequence
    SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence FrameContentSequence
    PlanePositionSequence PlaneOrientationSequence PixelMeasuresSequence SegmentIdentificationSequence
    DerivationImageSequence SourceImageSequence PurposeOfReferenceCodeSequence DerivationCodeSequence
    ReferencedSeriesSequence ReferencedInstanceSequence ReferencedImageSequence
    PixelValueTransformationSequence FrameVOILUTSequence
    """
)
"""Entered; items keep what stands here."""

CODES = _words(
    """
    ImageType Modality PhotometricInterpretation PatientPosition LossyImageCompression RescaleType
    RotationDirection DoseUnits DoseType DoseSummationType TissueHeterogeneityCorrection
    BurnedInAnnotation ROIGenerationAlgorithm ContourGeometricType RTROIInterpretedType
    SegmentAlgorithmType SegmentationType SegmentationFractionalType SegmentsOverlap
    DimensionOrganizationType ApprovalStatus VolumetricProperties
    """
)
"""Kept value by value, if the value is one of `CODE_VALUES`."""

CODE_VALUES = frozenset(
    _words(
        """
    ORIGINAL DERIVED PRIMARY SECONDARY AXIAL LOCALIZER VOLUME CT RTSTRUCT RTDOSE SEG MONOCHROME1
    MONOCHROME2 HFS HFP FFS FFP HFDR HFDL FFDR FFDL 00 01 HU US OD CW CC GY RELATIVE PHYSICAL EFFECTIVE
    ERROR PLAN MULTI_PLAN FRACTION BEAM BRACHY CONTROL_POINT IMAGE ROI_OVERRIDE WATER YES NO AUTOMATIC
    SEMIAUTOMATIC MANUAL POINT OPEN_PLANAR OPEN_NONPLANAR CLOSED_PLANAR CLOSEDPLANAR_XOR EXTERNAL PTV
    CTV GTV TREATED_VOLUME IRRAD_VOLUME BOLUS AVOIDANCE ORGAN MARKER REGISTRATION ISOCENTER
    CONTRAST_AGENT CAVITY BRACHY_CHANNEL SUPPORT FIXATION DOSE_REGION DOSE_MEASUREMENT CONTROL BINARY
    FRACTIONAL LABELMAP PROBABILITY OCCUPANCY UNDEFINED 3D 3D_TEMPORAL TILED_FULL TILED_SPARSE
    UNAPPROVED APPROVED REJECTED NONE
    """
    )
)

NAMES = ("ROIName", "SegmentLabel")
"""Free text that tells structures apart: replaced by what the caller's function makes of it."""

FIXED = {
    "StructureSetLabel": "STRUCTURES",
    "ContentLabel": "SEGMENTATION",
    "SegmentAlgorithmName": "NOT GIVEN",
    "ContentDate": "20000101",
    "ContentTime": "000000",
}
"""Required by the standard where they stand: replaced by what says nothing."""

EMPTIED = _words(
    """
    StudyDate StudyTime AccessionNumber ReferringPhysicianName PatientBirthDate PatientSex StudyID
    StructureSetDate StructureSetTime ContentDescription ContentCreatorName ROIInterpreter
    PositionReferenceIndicator Manufacturer ContrastBolusAgent
    """
)
"""Of type 2: there, and empty."""

VENDORS = _words(
    """
    Siemens Philips GE Canon Toshiba Hitachi Varian Elekta RaySearch Nucletron TomoTherapy Accuray MIM
    Brainlab
    """
)
NUMERIC_BYTES = re.compile(rb"[0-9eE+\-.\\ \0]*")
TAG_KIND: dict[int, str] = {
    int(tag_for_keyword(keyword) or 0): kind
    for kind, keywords in {
        "uid": UIDS,
        "standard-uid": STANDARD_UIDS,
        "number": NUMBERS,
        "sequence": SEQUENCES,
        "code": CODES,
        "name": NAMES,
        "fixed": FIXED,
        "empty": EMPTIED,
        "pixels": ["PixelData"],
    }.items()
    for keyword in keywords
}
"""Tag -> what happens to it; a tag that is not here is removed."""
