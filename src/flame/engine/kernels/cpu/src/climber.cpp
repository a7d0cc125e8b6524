// The library of a Climber.
#include "climber.h"
//
#include "functions.h"
